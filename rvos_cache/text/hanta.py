"""Tags by HanTa (C5, the tagset of the British National Corpus), mended where referring expressions are not its English.

HanTa was taught on running text; an expression is a noun phrase that says where things are and what they do. Each mend is
a rule of grammar about one word and its neighbours, the left one already mended. None is about a single sentence.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

RULES_VERSION = 2
"""Of the mends below; a text cache is bound to it. 1: participles alone."""
LIKELY = 5.0
"""Readings of a word that are this much less probable (in nats) than its best one are none; HanTa's own cut."""
KNOWN = -29.0
"""Log-probability of a word that HanTa knows or puts together from known parts; what it only guesses has less than -31."""
SIDES = ("left", "right")
PLACES = ("back", "bottom", "far", "front", "lower", "top", "upper")
COMPOUNDS = {
    *((first, "of") for first in ("ahead", "inside", "off", "out", "outside")),
    *((first, "to") for first in ("close", "near", "next")),
    ("in", "between"),
}
"""First words of prepositions of two words; C5 tags both as prepositions."""
LOCOMOTION = {
    "climb", "come", "crawl", "creep", "dash", "drive", "fall", "fly", "gallop", "go", "hike", "hop", "jog", "jump", "leap",
    "march", "move", "race", "ride", "roll", "run", "sail", "scoot", "skate", "ski", "slide", "sneak", "speed", "stroll",
    "swim", "swing", "travel", "trot", "waddle", "walk", "wander",
}  # fmt: skip
"""Verbs of motion without an object (Levin, English Verb Classes, 1993, sections 51.1 to 51.4), as far as tracked things
move so: a noun phrase behind their particle is the particle's, which is a preposition then."""
NOUN_PHRASE = ("AT0", "AJ", "CRD", "DPS", "DT0", "NN", "NP0", "PNP")
FINITE = ("VB", "VD", "VH", "VM", "VVB", "VVD", "VVZ")
MANNER = re.compile(r"\w{4,}(wards|wise)")


class Tagged:
    """A tagged sentence: lower-case words, lemmas and tags, "" beyond its ends; and what else HanTa reads a word as."""

    def __init__(self, model: Any, words: Sequence[str], readings: Callable[[str], dict[str, float]]) -> None:
        self.words = [word.lower() for word in words]
        found = model.tag_sent(list(words))
        self.lemmas, self.tags = [str(lemma) for _, lemma, _ in found], [str(tag) for _, _, tag in found]
        self.scores = readings

    def word(self, i: int) -> str:
        return self.words[i] if 0 <= i < len(self.words) else ""

    def tag(self, i: int) -> str:
        return self.tags[i] if 0 <= i < len(self.tags) else ""

    def ends(self, i: int) -> bool:
        """Nothing of the phrase is behind word i: the sentence ends there, or a mark or a conjunction follows."""
        return self.tag(i + 1).startswith(("PUN", "CJ")) or i + 1 == len(self.tags)

    def readings(self, i: int) -> set[str]:
        """The likely tags of word i without its sentence."""
        scores = self.scores(self.words[i])
        return {tag for tag, score in scores.items() if score >= max(scores.values()) - LIKELY}

    def known(self, word: str, tags: tuple[str, ...]) -> bool:
        """Whether HanTa knows the word as one of `tags`."""
        return any(tag.startswith(tags) and score > KNOWN for tag, score in self.scores(word).items()) if word else False


Rule = Callable[[Tagged, int], str | None]
"""A sentence and the place of a word -> its right tag, or None where the rule knows no better."""


def participle(s: Tagged, i: int) -> str | None:
    """ "dancing" is no noun where HanTa knows the verb too, "skateboarding" none where it knows nothing but the skateboard."""
    word = s.word(i)
    if not (word.endswith("ing") and s.tag(i).startswith(("NN", "AJ")) and len(word) > 4):
        return "VVG" if word == "following" and s.tag(i) == "PRP" else None
    if "VDG" in s.readings(i):
        return "VDG"
    stem = word[:-3]
    if not s.known(word, ("NN", "VV")):
        of_verb = any(s.known(form, ("NN", "VV")) for form in (stem, stem + "e", stem[:-1] if stem[-2:-1] == stem[-1] else ""))
        return "VVG" if of_verb else None
    return "VVG" if "VVG" in s.readings(i) else None


def side(s: Tagged, i: int) -> str | None:
    """ "on the bottom left": no verb, though it is one in "left the room", and no adverb, though in "turning left"."""
    if s.word(i) not in SIDES or not s.tag(i).startswith(("VV", "AV")):
        return None
    return "NN1" if s.word(i - 1) in ("", *PLACES) or s.tag(i - 1).startswith(("AT0", "PR")) else None


def compound(s: Tagged, i: int) -> str | None:
    """ "next to", "out of"."""
    return "PRP" if (s.word(i), s.word(i + 1)) in COMPOUNDS and not s.tag(i).startswith("VV") else None


def path(s: Tagged, i: int) -> str | None:
    """ "climbing up a tree", but "picking up a ball"."""
    moves = s.tag(i - 1).startswith("VV") and s.lemmas[i - 1] in LOCOMOTION
    return "PRP" if s.tag(i) == "AVP" and moves and s.tag(i + 1).startswith(NOUN_PHRASE) and "PRP" in s.readings(i) else None


def without_object(s: Tagged, i: int) -> str | None:
    """ "driving by": a preposition that governs nothing is an adverb, where the word can be one."""
    found = sorted(s.readings(i) & {"AV0", "AVP"}) if s.tag(i) == "PRP" and s.ends(i) else []
    return found[-1] if found else None


def behind_article(s: Tagged, i: int) -> str | None:
    """ "the far left", "the same place", "in the behind": what stands between an article and a noun, or alone, is no adverb."""
    if s.tag(i) != "AV0" or s.tag(i - 1) != "AT0":
        return None
    if s.tag(i + 1).startswith("NN") or s.word(i + 1) in SIDES:
        return "AJ0"
    return None if s.tag(i + 1).startswith(("AJ", "AV", "CRD", "ORD", "VV")) else "NN1"


def other(s: Tagged, i: int) -> str | None:
    """It is never an adverb, and no adjective in "each other"."""
    if s.word(i) != "other" or not s.tag(i).startswith(("AJ", "AV")):
        return None
    if s.word(i - 1) == "each" and not s.tag(i + 1).startswith("NN"):
        return "PNX"
    return "AJ0"


def bare_form(s: Tagged, i: int) -> str | None:
    """ "a black duck": a finite verb follows no article and no adjective, and begins no expression."""
    return "NN1" if s.tag(i) == "VVB" and (i == 0 or s.tag(i - 1).startswith(("AT0", "AJ", "DPS"))) else None


def relative_verb(s: Tagged, i: int) -> str | None:
    """ "the stars that never pause": "that" behind a noun begins a clause; what may be its verb is, if no other follows."""
    that = i - 2 if s.tag(i - 1) == "AV0" else i - 1
    clause = s.word(that) == "that" and s.tag(that - 1).startswith(("NN", "CRD", "PNI"))
    if not clause or s.tag(i) not in ("NN1", "NN2") or s.tag(i + 1).startswith((*FINITE, "NN")):
        return None
    return next((tag for tag in ("VVZ", "VVB", "VVI") if tag in s.readings(i)), None)


def order(s: Tagged, i: int) -> str | None:
    """ "that stops first": C5 has one tag for ordinals; where they speak of a verb they are adverbs."""
    counts = s.word(i) == "next" or s.word(i + 1) == "from" or s.tag(i + 1).startswith((*NOUN_PHRASE, "ORD", "PNI"))
    if s.tag(i) != "ORD" or counts:
        return None
    of_verb = s.tag(i - 1).startswith(("VV", "AV")) or (s.ends(i) and s.tag(i - 1).startswith("NN"))
    return "AV0" if of_verb else None


def pronoun_one(s: Tagged, i: int) -> str | None:
    """ "the smaller one"."""
    if s.word(i) != "one" or s.tag(i) != "CRD" or s.tag(i + 1).startswith(("AJ", "NN")):
        return None
    return "PNI" if s.tag(i - 1).startswith(("AT0", "AJ", "DT0")) else None


def manner(s: Tagged, i: int) -> str | None:
    """ "rightwards", "anticlockwise": their endings make adverbs, and adjectives before a noun alone."""
    if not MANNER.fullmatch(s.word(i)) or not s.tag(i).startswith(("AJ", "NN")):
        return None
    return None if s.tag(i + 1).startswith("NN") else "AV0"


def possessive(s: Tagged, i: int) -> str | None:
    """ "a person s hand": Ref-YouTube-VOS has lost its apostrophes."""
    return "POS" if s.word(i) == "s" and i else None


def unknown(s: Tagged, i: int) -> str | None:
    """An English word that HanTa has never met ("giraffe") is a noun: new words mostly are."""
    return "NN1" if s.tag(i) == "UNC" and s.word(i).isascii() and s.word(i).isalpha() else None


RULES: tuple[Rule, ...] = (
    participle,
    side,
    compound,
    path,
    without_object,
    behind_article,
    other,
    bare_form,
    relative_verb,
    order,
    pronoun_one,
    manner,
    possessive,
    unknown,
)
"""The first that knows better decides."""


def load() -> tuple[str, Callable[[list[str]], list[str]]]:
    """What made the tags, with its version, and the tagger: words of one sentence to their tags."""
    from HanTa import HanoverTagger

    model: Any = HanoverTagger.HanoverTagger("morphmodel_en.pgz")

    @lru_cache(maxsize=50_000)
    def readings(word: str) -> dict[str, float]:
        return {str(tag): float(score) for tag, score in model.tag_word(word)}

    def tag(words: list[str]) -> list[str]:
        s = Tagged(model, words, readings)
        for i in range(len(s.tags)):
            s.tags[i] = next((found for rule in RULES if (found := rule(s, i))), s.tags[i])
        return s.tags

    return f"{importlib.metadata.version('HanTa')}, rules {RULES_VERSION}", tag
