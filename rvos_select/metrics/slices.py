"""Slices of a split: by the kind and length of an expression, the number and size of its objects, the length of its video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rvos_cache.types import Words

SMALL, MEDIUM = 32**2 / (640 * 480), 96**2 / (640 * 480)
"""Shares of the frame below which an object is small or medium: COCO's limits in pixels (Lin et al., ECCV 2014) at 640x480."""
UNKNOWN = "unknown"
"""The slice of items of which an attribute is not known: the video cannot be read, or nothing gives the kind."""


@dataclass(frozen=True)
class Facts:
    """Attributes of a scored item, an expression or an object.

    words: count of words of its text, between spaces, 0 for an object that no text names; targets: count of objects that an
    expression names, None for an object; frames: of its video; share: mean share of the frame that its pixels cover, see
    `mean_share`; kind: "motion", "static" …; objects: count in its video, None where expressions are scored.
    """

    words: int
    targets: int | None
    frames: int
    share: float | None
    kind: str | None
    objects: int | None = None


def mean_share(areas: Iterable[int], size: tuple[int, int]) -> float | None:
    """Mean share of a frame of `size` (H, W) over the frames with pixels; None where none has. areas: pixels in each frame."""
    visible = [area for area in areas if area]
    return sum(visible) / len(visible) / (size[0] * size[1]) if visible else None


def _length(words: int) -> str:
    return "none" if not words else "1-5" if words <= 5 else "6-10" if words <= 10 else "11+"


def _number(count: int | None) -> str | None:
    return None if count is None else ("none", "single")[count] if count < 2 else "multi"


def _size(share: float | None) -> str:
    if share is None:
        return "none"
    return "small" if share < SMALL else "medium" if share < MEDIUM else "large"


def _frames(count: int) -> str:
    return "1-50" if count <= 50 else "51-100" if count <= 100 else "101+"


ATTRIBUTES: dict[str, Callable[[Facts], str | None]] = {
    "kind": lambda facts: facts.kind,
    "targets": lambda facts: _number(facts.targets),
    "objects": lambda facts: _number(facts.objects),
    "words": lambda facts: _length(facts.words),
    "size": lambda facts: _size(facts.share),
    "frames": lambda facts: _frames(facts.frames),
}
"""Attribute -> the slice of it that an item belongs to; None where the item has no such attribute."""


def slice_keys(facts: Mapping[str, Facts | None]) -> dict[str, dict[str, list[str]]]:
    """{attribute: {slice: keys}} of items by key. facts: None, where nothing is known of an item.

    An attribute that no item has is left out.
    """
    slices: dict[str, dict[str, list[str]]] = {}
    for attribute, slice_of in ATTRIBUTES.items():
        names = {key: None if known is None else slice_of(known) for key, known in facts.items()}
        if not any(names.values()):
            continue
        keys_of: dict[str, list[str]] = {}
        for key, name in names.items():
            keys_of.setdefault(name or UNKNOWN, []).append(key)
        slices[attribute] = dict(sorted(keys_of.items()))
    return slices


def kind_of_words(words: Words, cue: Callable[[str], str]) -> str:
    """Kind of an expression by the tags of its words: "motion", "static", "both" or "neither". cue: tag -> its kind."""
    cues = {cue(tag) for tag in words.tags if tag}
    motion, static = "motion" in cues, "static" in cues
    return "both" if motion and static else "motion" if motion else "static" if static else "neither"
