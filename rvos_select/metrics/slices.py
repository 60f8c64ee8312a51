"""Scores of parts of a split: what an expression says, how many objects it names, how large they are, how long its video is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rvos_cache.types import Words

SMALL, MEDIUM = 32**2 / (640 * 480), 96**2 / (640 * 480)
"""Shares of the frame below which an object is small or medium: COCO's limits in pixels (Lin et al., ECCV 2014) at 640x480."""
UNKNOWN = "unknown"
"""The part of what nobody could look at: its video cannot be read, or nothing tells its kind."""


@dataclass(frozen=True)
class Facts:
    """What is known of an expression, or of an object, beside its scores.

    words: of its text, between spaces, 0 for an object that no text names; targets: objects that an expression names, None
    for an object; frames: of its video; share: mean share of the frame that its pixels cover, see `mean_share`; kind: motion,
    static ...; objects: in its video, None where expressions are scored.
    """

    words: int
    targets: int | None
    frames: int
    share: float | None
    kind: str | None
    objects: int | None = None


def mean_share(areas: Iterable[int], size: tuple[int, int]) -> float | None:
    """Mean share of a frame of `size` (H, W) over the frames with pixels, None where none has. areas: pixels in each frame."""
    shown = [area for area in areas if area]
    return sum(shown) / len(shown) / (size[0] * size[1]) if shown else None


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
"""Attribute -> the part that something scored belongs to, one of each attribute; None where it has no such attribute."""


def parts(facts: Mapping[str, Facts | None]) -> dict[str, dict[str, list[str]]]:
    """{attribute: {part: keys}} of what is scored, by key; None: nothing is known of it. What no key has is no attribute."""
    out: dict[str, dict[str, list[str]]] = {}
    for name, part in ATTRIBUTES.items():
        found = {key: None if known is None else part(known) for key, known in facts.items()}
        if not any(found.values()):
            continue
        held: dict[str, list[str]] = {}
        for key, name_of_part in found.items():
            held.setdefault(name_of_part or UNKNOWN, []).append(key)
        out[name] = dict(sorted(held.items()))
    return out


def sliced(facts: Mapping[str, Facts | None], means: Callable[[list[str]], dict[str, Any]]) -> dict[str, Any]:
    """{attribute: {part: {**means(keys), "count"}}}, empty where nothing is known of any key."""
    return {
        name: {part: {**means(keys), "count": len(keys)} for part, keys in held.items()} for name, held in parts(facts).items()
    }


def kind_of_words(words: Words, cue: Callable[[str], str]) -> str:
    """What the tags of a sentence's words speak of: motion, static, both or neither."""
    found: Iterable[str] = {cue(tag) for tag in words.tags if tag}
    motion, static = "motion" in found, "static" in found
    return "both" if motion and static else "motion" if motion else "static" if static else "neither"
