"""The text of a mirrored video: left and right change places."""

from __future__ import annotations

import re

PAIRS = {
    "left": "right",
    "leftmost": "rightmost",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "clockwise": "counterclockwise",
}
ONE_WAY = {"anticlockwise": "clockwise", "anti-clockwise": "clockwise", "counter-clockwise": "clockwise"}
"""Other spellings; their mirror image has only one."""


def _forms() -> dict[str, str]:
    """Each word in lower case, capitalised and in capitals -> its mirror image in the same."""
    both = PAIRS | {b: a for a, b in PAIRS.items()} | ONE_WAY
    return {case(a): case(b) for a, b in both.items() for case in (str.lower, str.title, str.capitalize, str.upper)}


FORMS = _forms()
# Longest first: "counter-clockwise" is one word and not a compound of "clockwise". A right angle has no side.
WORD = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(FORMS, key=len, reverse=True))})(?!\w|[- ]angle)")


def mirrored_text(text: str) -> str:
    """`text` with left and right, and the directions of turning, swapped; every other character stays.

    Whole words only ("bright" and "leftover" stay), also in compounds with a hyphen ("left-hand"); lower case, "Left" and
    "LEFT" are known. What a word means is not: "left" is swapped where it is a verb too. Twice gives the text back, but for
    spellings of "counterclockwise" other than this one.
    """
    return WORD.sub(lambda found: FORMS[found.group()], text)
