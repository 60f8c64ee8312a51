"""Sentences of mirrored videos: left and right are exchanged."""

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
"""Other spellings of "counterclockwise"; the mirror image of "clockwise" has only that one spelling."""


def _forms() -> dict[str, str]:
    """Return each word in lower case, capitalised and in capitals -> its mirror image in the same case."""
    both = PAIRS | {b: a for a, b in PAIRS.items()} | ONE_WAY
    return {case(a): case(b) for a, b in both.items() for case in (str.lower, str.title, str.capitalize, str.upper)}


FORMS = _forms()
# The longest first: "counter-clockwise" is one word, not a compound of "clockwise". "right angle" names no direction.
WORD = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(FORMS, key=len, reverse=True))})(?!\w|[- ]angle)")


def mirrored_text(text: str) -> str:
    """Return `text` with left and right, and clockwise and counterclockwise, exchanged; every other character is unchanged.

    Matches whole words only ("bright" and "leftover" are unchanged), also in compounds with a hyphen ("left-hand"), in lower
    case, capitalised or in capitals. The meaning of a word is not considered: "left" is also replaced where it is a verb.
    Applied twice it returns `text`, except for spellings of "counterclockwise" other than this one.
    """
    return WORD.sub(lambda match: FORMS[match.group()], text)
