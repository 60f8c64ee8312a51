"""Scores of parts of a split: what an expression says, how many objects it names, how large they are, how long its video is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rvos_cache.types import Words

SMALL, MEDIUM = 32**2 / (640 * 480), 96**2 / (640 * 480)
"""Shares of the frame below which an object is small or medium: COCO's limits in pixels (Lin et al., ECCV 2014) at 640x480."""
UNKNOWN = "unknown"
"""The part of expressions that nobody could look at: their video cannot be read, or nothing tells their kind."""


@dataclass(frozen=True)
class Facts:
    """What is known of an expression beside its scores.

    words: of its text, between spaces; targets: objects that it names; frames: of its video; share: mean share of the frame
    that its objects cover together, over the annotated frames that show them, None where none does; kind: motion, static ...
    """

    words: int
    targets: int
    frames: int
    share: float | None
    kind: str | None


def _length(words: int) -> str:
    return "1-5" if words <= 5 else "6-10" if words <= 10 else "11+"


def _targets(count: int) -> str:
    return ("none", "single")[count] if count < 2 else "multi"


def _size(share: float | None) -> str:
    if share is None:
        return "none"
    return "small" if share < SMALL else "medium" if share < MEDIUM else "large"


def _frames(count: int) -> str:
    return "1-50" if count <= 50 else "51-100" if count <= 100 else "101+"


ATTRIBUTES: dict[str, Callable[[Facts], str]] = {
    "kind": lambda facts: facts.kind or UNKNOWN,
    "targets": lambda facts: _targets(facts.targets),
    "words": lambda facts: _length(facts.words),
    "size": lambda facts: _size(facts.share),
    "frames": lambda facts: _frames(facts.frames),
}
"""Attribute -> the part that an expression belongs to. Every expression belongs to one part of each."""


def parts(facts: Mapping[str, Facts | None]) -> dict[str, dict[str, list[str]]]:
    """{attribute: {part: keys}} of expressions by key; None: nothing is known of it. No kind anywhere: no such attribute."""
    out: dict[str, dict[str, list[str]]] = {}
    for name, part in ATTRIBUTES.items():
        if name == "kind" and all(found is None or found.kind is None for found in facts.values()):
            continue
        held: dict[str, list[str]] = {}
        for key, found in facts.items():
            held.setdefault(UNKNOWN if found is None else part(found), []).append(key)
        out[name] = dict(sorted(held.items()))
    return out


def sliced(facts: Mapping[str, Facts | None], means: Callable[[list[str]], dict[str, Any]]) -> dict[str, Any]:
    """{attribute: {part: {**means(keys), "count"}}}."""
    return {
        name: {part: {**means(keys), "count": len(keys)} for part, keys in held.items()} for name, held in parts(facts).items()
    }


def kind_of_words(words: Words, cue: Callable[[str], str]) -> str:
    """What the tags of a sentence's words speak of: motion, static, both or neither."""
    found: Iterable[str] = {cue(tag) for tag in words.tags if tag}
    motion, static = "motion" in found, "static" in found
    return "both" if motion and static else "motion" if motion else "static" if static else "neither"
