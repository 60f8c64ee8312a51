"""Mirrored sentences: hand-written cases, and properties of every text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvos_cache.media.captions import mirrored_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the dog on the left", "the dog on the right"),
        ("Left, then RIGHT!", "Right, then LEFT!"),
        ("left-to-right, left/right, top-left", "right-to-left, right/left, top-right"),
        ("Right-hand car, the left's", "Left-hand car, the right's"),
        ("leftmost rightmost leftward rightwards", "rightmost leftmost rightward leftwards"),
        ("making a right-angled turn at a right angle to the right", "making a right-angled turn at a right angle to the left"),
        ("Turning clockwise", "Turning counterclockwise"),
        ("counterclockwise, Anticlockwise", "clockwise, Clockwise"),
        ("anti-clockwise Counter-Clockwise COUNTER-CLOCKWISE", "clockwise Clockwise CLOCKWISE"),
        ("clockwise-turning", "counterclockwise-turning"),
        ("bright leftover copyright rightly left_1 xleft leftée éleft lefts", None),
        ("lEFT rigHt", None),
        ("", None),
        (" left\t\nright  ", " right\t\nleft  "),
        ("左left 左 left 🐦left", "左left 左 right 🐦right"),
    ],
)
def test_by_hand(text: str, expected: str | None) -> None:
    assert mirrored_text(text) == (text if expected is None else expected)


SIDES = ["left", "right", "leftmost", "rightmost", "leftward", "rightward", "leftwards", "rightwards"]
NEAR = ["bright", "leftover", "-", "_", " ", "'", "é", "́", "ſ", "the", ".", "0", "\n", "lEft"]
PIECES = st.sampled_from([case(side) for side in SIDES for case in (str.lower, str.capitalize, str.upper)] + NEAR)
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)


@settings(deadline=None)
@given(TEXTS)
def test_twice_gives_the_text_back(text: str) -> None:
    assert mirrored_text(mirrored_text(text)) == text


@settings(deadline=None)
@given(TEXTS)
def test_only_whole_words_change(text: str) -> None:
    """Words and the text between them, split by other code: all except words of sides are equal, and as many."""
    before, after = (re.split(r"(\w+)", t) for t in (text, mirrored_text(text)))
    assert len(before) == len(after)
    for one, two in zip(before, after):
        if one.lower() not in SIDES or one not in (one.lower(), one.capitalize(), one.upper()):
            assert one == two
        else:
            assert two.lower() in SIDES and two.lower() != one.lower()
            assert (one.islower(), one.isupper(), one.istitle()) == (two.islower(), two.isupper(), two.istitle())


@settings(deadline=None)
@given(st.text())
def test_a_text_without_directions_stays(text: str) -> None:
    if not re.search("left|right|clockwise", text, re.IGNORECASE):
        assert mirrored_text(text) == text
