"""Paraphrases: what a sentence about moving shapes says, in words and syntax that no sentence of `language` has.

A paraphrase has the targets, the kind and the claim of its sentence. Apart from articles, pronouns, conjunctions and
prepositions no word of it is in a sentence of `language`, and no sentence there is a question, a statement or an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from rvos_cache.shapes.language import PAIRS, Sentence
from rvos_cache.shapes.motion import OPPOSITE


class Predicate(NamedTuple):
    """What objects do: "it rises", "they rise", "rising"."""

    one: str
    many: str
    participle: str


COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "green": ("emerald", "grass-coloured"),
    "blue": ("azure", "cobalt"),
    "yellow": ("golden", "lemon-coloured"),
    "purple": ("violet", "plum-coloured"),
    "orange": ("tangerine", "carrot-coloured"),
    "white": ("snowy", "milky"),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "ball"),
    "square": ("box", "block"),
    "triangle": ("three-cornered tile", "pyramid"),
    "star": ("pentagram", "pentacle"),
    "diamond": ("rhombus", "lozenge"),
    "cross": ("plus sign", "plus symbol"),
    "object": ("item", "figure", "element"),
}
GROUPS = {2: "a pair of", 3: "a trio of"}
"""Number of targets -> its quantity in a statement."""
SEVERAL = "a bunch of"
"""The quantity of more targets than in GROUPS."""

TOWARDS = {"left": "leftwards", "right": "rightwards", "up": "towards the top", "down": "towards the bottom"}


def _verb(one: str, many: str, participle: str, rest: str = "") -> Predicate:
    return Predicate(*(f"{verb} {rest}".strip() for verb in (one, many, participle)))


def _glide(rest: str) -> Predicate:
    return _verb("glides", "glide", "gliding", rest)


def _be(rest: str) -> Predicate:
    """ "is pursued", "are pursued" and "pursued"."""
    return Predicate(f"is {rest}", f"are {rest}", rest)


def _two_ways(first: str, then: str) -> tuple[Predicate, ...]:
    """Return two wordings of "goes `first` and then `then`"."""
    turning = "returning" if then == OPPOSITE[first] else "heading"
    return (
        _glide(f"{TOWARDS[first]} before {turning} {TOWARDS[then]}"),
        _verb("drifts", "drift", "drifting", f"{TOWARDS[first]} initially, {TOWARDS[then]} afterwards"),
    )


PREDICATES: dict[str, tuple[Predicate, ...]] = {
    "left": (_verb("drifts", "drift", "drifting", "leftwards"), _verb("heads", "head", "heading", "for the left-hand edge")),
    "right": (_verb("drifts", "drift", "drifting", "rightwards"), _verb("heads", "head", "heading", "for the right-hand edge")),
    "up": (_verb("rises", "rise", "rising"), _verb("climbs", "climb", "climbing", "towards the top")),
    "down": (_verb("sinks", "sink", "sinking"), _verb("descends", "descend", "descending", "towards the bottom")),
    **{f"{first} then {then}": _two_ways(first, then) for first, then in PAIRS},
    "still": (_verb("remains", "remain", "remaining", "motionless throughout"), _verb("rests", "rest", "resting", "in place")),
    "stop": (_glide("before freezing midway"), _verb("freezes", "freeze", "freezing", "after some gliding")),
    "start": (
        _verb("idles", "idle", "idling", "before gliding"),
        _verb("stirs", "stir", "stirring", "only after a delay"),
    ),
    "back": (
        _verb("performs", "perform", "performing", "a U-turn"),
        _verb("retraces", "retrace", "retracing", "the route taken so far"),
    ),
    "pause": (
        _verb("interrupts", "interrupt", "interrupting", "the journey briefly"),
        _verb("takes", "take", "taking", "a short break midway"),
    ),
    "speedup": (_verb("accelerates", "accelerate", "accelerating"), _verb("gains", "gain", "gaining", "pace")),
    "slowdown": (_verb("decelerates", "decelerate", "decelerating"), _verb("loses", "lose", "losing", "pace")),
    "swell": (
        _verb("expands", "expand", "expanding", "initially, contracting afterwards"),
        _verb("inflates", "inflate", "inflating", "before deflating"),
    ),
    "dip": (
        _verb("contracts", "contract", "contracting", "initially, expanding afterwards"),
        _verb("deflates", "deflate", "deflating", "before inflating"),
    ),
    "corner": (
        _verb("traces", "trace", "tracing", "an L-shaped route"),
        _verb("veers", "veer", "veering", "off by ninety degrees"),
    ),
    "clockwise": (
        _verb("revolves", "revolve", "revolving", "like the hands of a clock"),
        _verb("loops", "loop", "looping", "as clock hands do"),
    ),
    "anticlockwise": (
        _verb("revolves", "revolve", "revolving", "contrary to the hands of a clock"),
        _verb("loops", "loop", "looping", "against the sense of clock hands"),
    ),
    "grow": (_verb("expands", "expand", "expanding", "steadily"), _verb("inflates", "inflate", "inflating", "throughout")),
    "shrink": (_verb("contracts", "contract", "contracting", "steadily"), _verb("dwindles", "dwindle", "dwindling")),
    "enter": (
        _verb("appears", "appear", "appearing", "from beyond the border"),
        _verb("slides", "slide", "sliding", "into the picture"),
    ),
    "leave": (
        _verb("vanishes", "vanish", "vanishing", "beyond the border"),
        _verb("quits", "quit", "quitting", "the picture"),
    ),
    "fast": (_verb("rushes", "rush", "rushing"), _verb("races", "race", "racing", "at high velocity")),
    "slow": (_verb("crawls", "crawl", "crawling"), _verb("dawdles", "dawdle", "dawdling")),
    "chase": (_verb("pursues", "pursue", "pursuing", "a companion"), _verb("tails", "tail", "tailing", "a neighbour")),
    "chased": (_be("pursued"), _be("tailed by a neighbour")),
    "behind": (
        _verb("hides", "hide", "hiding", "at the rear of the pillar before re-emerging"),
        _be("briefly concealed by the pillar"),
    ),
    "cross": (
        _verb("meets", "meet", "meeting", "an oncoming neighbour"),
        _verb("swaps", "swap", "swapping", "sides with a companion"),
    ),
    "fastest": (_verb("outpaces", "outpace", "outpacing", "the rest"), _verb("has", "have", "having", "the highest velocity")),
    "first_stop": (
        _verb("freezes", "freeze", "freezing", "earliest"),
        _verb("becomes", "become", "becoming", "motionless earliest"),
    ),
    "last_stop": (_verb("freezes", "freeze", "freezing", "latest"), _be("latest to freeze")),
    "first_start": (
        _verb("begins", "begin", "beginning", "gliding earliest"),
        _verb("springs", "spring", "springing", "into action ahead of the rest"),
    ),
    "last_start": (
        _verb("begins", "begin", "beginning", "gliding latest"),
        _be("latest to spring into action"),
    ),
    "first_in": (
        _verb("appears", "appear", "appearing", "earliest"),
        _verb("arrives", "arrive", "arriving", "ahead of the rest"),
    ),
    "last_in": (_verb("appears", "appear", "appearing", "latest"), _be("latest to arrive")),
    "first_out": (_verb("vanishes", "vanish", "vanishing", "earliest"), _verb("exits", "exit", "exiting", "ahead of the rest")),
    "last_out": (_verb("vanishes", "vanish", "vanishing", "latest"), _be("latest to exit")),
}
"""Claim -> its wordings."""


def paraphrases(rng: np.random.Generator, sentences: Sequence[Sentence]) -> list[Sentence]:
    """Return a paraphrase of each sentence, with its targets, kind and claim."""
    return [replace(sentence, text=_text(rng, sentence)) for sentence in sentences]


def _text(rng: np.random.Generator, sentence: Sentence) -> str:
    count = len(sentence.targets)
    several = count > 1
    noun = _noun(rng, sentence.noun)
    noun = _plural(noun) if several else noun
    some = f"{GROUPS.get(count, SEVERAL)} {noun}" if several else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    are = "are" if several else "is"
    if sentence.claim not in PREDICATES:
        forms = [f"where {are} the {noun}?", f"point out the {noun}", f"there is {some}", f"look for the {noun}"]
    else:
        wordings = PREDICATES[sentence.claim]
        predicate = wordings[int(rng.integers(len(wordings)))]
        verb = predicate.many if several else predicate.one
        forms = [
            f"which {noun} {verb}?",
            f"watch whichever {noun} {verb}",
            f"{predicate.participle} {are} {some}",
            f"{some} {verb}",
        ]
    return forms[int(rng.integers(len(forms)))]


def _noun(rng: np.random.Generator, noun: str) -> str:
    """Return another noun, and another adjective if there is one, for the noun of a sentence ("red square")."""
    *colour, shape = noun.split()
    return " ".join(str(rng.choice(words)) for words in (*(COLOURS[c] for c in colour), SHAPES[shape]))


def _plural(noun: str) -> str:
    return f"{noun}{'es' if noun.endswith(('s', 'x')) else 's'}"
