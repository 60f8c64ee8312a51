"""Part-of-speech tags by HanTa (C5, the tagset of the British National Corpus), corrected for referring expressions.

HanTa was trained on running text; a referring expression is a noun phrase that describes where objects are and what they do.
Each correction is a rule of grammar about one word and its neighbours, of which the left one is already corrected. No rule is
about a single sentence.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

RULES_VERSION = 2
"""Version of the rules below; a text cache is bound to it. Version 1 had the rule for participles only."""
MAX_GAP = 5.0
"""Largest difference in log-probability (nats) between a likely tag of a word and its most probable tag; HanTa's own value."""
KNOWN = -29.0
"""Least log-probability of a word that HanTa knows or composes from known parts; that of a guess is below -31."""
SIDES = ("left", "right")
POSITIONS = ("back", "bottom", "far", "front", "lower", "top", "upper")
COMPOUNDS = {
    *((first, "of") for first in ("ahead", "inside", "off", "out", "outside")),
    *((first, "to") for first in ("close", "near", "next")),
    ("in", "between"),
}
"""Prepositions of two words; C5 tags both words as prepositions."""
LOCOMOTION = {
    "climb", "come", "crawl", "creep", "dash", "drive", "fall", "fly", "gallop", "go", "hike", "hop", "jog", "jump", "leap",
    "march", "move", "race", "ride", "roll", "run", "sail", "scoot", "skate", "ski", "slide", "sneak", "speed", "stroll",
    "swim", "swing", "travel", "trot", "waddle", "walk", "wander",
}  # fmt: skip
"""Intransitive verbs of motion, as far as tracked objects move so. A noun phrase after their particle belongs to the particle,
which is then a preposition. Source: Levin, English Verb Classes and Alternations, 1993, sections 51.1 to 51.4."""
NOUN_PHRASE = ("AT0", "AJ", "CRD", "DPS", "DT0", "NN", "NP0", "PNP")
FINITE = ("VB", "VD", "VH", "VM", "VVB", "VVD", "VVZ")
MANNER = re.compile(r"\w{4,}(wards|wise)")


class Tagged:
    """A tagged sentence: lower-case words, lemmas and tags, and the other tags that HanTa considers for a word.

    scores: word -> the log-probability of each tag of the word alone.
    """

    def __init__(self, model: Any, words: Sequence[str], scores: Callable[[str], dict[str, float]]) -> None:
        self.words = [word.lower() for word in words]
        tagged = model.tag_sent(list(words))
        self.lemmas, self.tags = [str(lemma) for _, lemma, _ in tagged], [str(tag) for _, _, tag in tagged]
        self.scores = scores

    def word(self, i: int) -> str:
        """Return word i, "" before the first and after the last."""
        return self.words[i] if 0 <= i < len(self.words) else ""

    def tag(self, i: int) -> str:
        """Return tag i, "" before the first and after the last."""
        return self.tags[i] if 0 <= i < len(self.tags) else ""

    def ends_phrase(self, i: int) -> bool:
        """Return whether the phrase ends at word i: the sentence ends there, or punctuation or a conjunction follows."""
        return self.tag(i + 1).startswith(("PUN", "CJ")) or i + 1 == len(self.tags)

    def likely_tags(self, i: int) -> set[str]:
        """Return the likely tags of word i without its sentence."""
        scores = self.scores(self.words[i])
        return {tag for tag, score in scores.items() if score >= max(scores.values()) - MAX_GAP}

    def is_known(self, word: str, tags: tuple[str, ...]) -> bool:
        """Return whether HanTa knows the word with one of the prefixes `tags`."""
        return any(tag.startswith(tags) and score > KNOWN for tag, score in self.scores(word).items()) if word else False


Rule = Callable[[Tagged, int], str | None]
"""(sentence, index of a word) -> its corrected tag, or None if the rule does not apply."""


def participle(s: Tagged, i: int) -> str | None:
    """ "dancing" is no noun if HanTa knows the verb too, nor is "skateboarding" although HanTa knows only the noun skateboard."""
    word = s.word(i)
    if not (word.endswith("ing") and s.tag(i).startswith(("NN", "AJ")) and len(word) > 4):
        return "VVG" if word == "following" and s.tag(i) == "PRP" else None
    if "VDG" in s.likely_tags(i):
        return "VDG"
    stem = word[:-3]
    if not s.is_known(word, ("NN", "VV")):
        of_verb = any(s.is_known(form, ("NN", "VV")) for form in (stem, stem + "e", stem[:-1] if stem[-2:-1] == stem[-1] else ""))
        return "VVG" if of_verb else None
    return "VVG" if "VVG" in s.likely_tags(i) else None


def side(s: Tagged, i: int) -> str | None:
    """ "on the bottom left": no verb, as in "left the room", and no adverb, as in "turning left"."""
    if s.word(i) not in SIDES or not s.tag(i).startswith(("VV", "AV")):
        return None
    return "NN1" if s.word(i - 1) in ("", *POSITIONS) or s.tag(i - 1).startswith(("AT0", "PR")) else None


def compound(s: Tagged, i: int) -> str | None:
    """ "next to" and "out of" are prepositions."""
    return "PRP" if (s.word(i), s.word(i + 1)) in COMPOUNDS and not s.tag(i).startswith("VV") else None


def path(s: Tagged, i: int) -> str | None:
    """ "climbing up a tree" has a preposition, "picking up a ball" has a particle."""
    moves = s.tag(i - 1).startswith("VV") and s.lemmas[i - 1] in LOCOMOTION
    return "PRP" if s.tag(i) == "AVP" and moves and s.tag(i + 1).startswith(NOUN_PHRASE) and "PRP" in s.likely_tags(i) else None


def without_object(s: Tagged, i: int) -> str | None:
    """ "driving by": a preposition without an object is an adverb, if the word can be one."""
    adverbs = sorted(s.likely_tags(i) & {"AV0", "AVP"}) if s.tag(i) == "PRP" and s.ends_phrase(i) else []
    return adverbs[-1] if adverbs else None


def after_article(s: Tagged, i: int) -> str | None:
    """ "the far left", "the same place", "in the behind": a word between an article and a noun, or alone, is no adverb."""
    if s.tag(i) != "AV0" or s.tag(i - 1) != "AT0":
        return None
    if s.tag(i + 1).startswith("NN") or s.word(i + 1) in SIDES:
        return "AJ0"
    return None if s.tag(i + 1).startswith(("AJ", "AV", "CRD", "ORD", "VV")) else "NN1"


def other(s: Tagged, i: int) -> str | None:
    """ "other" is never an adverb, and in "each other" no adjective."""
    if s.word(i) != "other" or not s.tag(i).startswith(("AJ", "AV")):
        return None
    if s.word(i - 1) == "each" and not s.tag(i + 1).startswith("NN"):
        return "PNX"
    return "AJ0"


def bare_form(s: Tagged, i: int) -> str | None:
    """ "a black duck": a finite verb does not follow an article or an adjective, and does not begin an expression."""
    return "NN1" if s.tag(i) == "VVB" and (i == 0 or s.tag(i - 1).startswith(("AT0", "AJ", "DPS"))) else None


def relative_verb(s: Tagged, i: int) -> str | None:
    """ "the stars that never pause": "that" after a noun begins a clause; a word that may be its verb is, if no verb follows."""
    that = i - 2 if s.tag(i - 1) == "AV0" else i - 1
    clause = s.word(that) == "that" and s.tag(that - 1).startswith(("NN", "CRD", "PNI"))
    if not clause or s.tag(i) not in ("NN1", "NN2") or s.tag(i + 1).startswith((*FINITE, "NN")):
        return None
    return next((tag for tag in ("VVZ", "VVB", "VVI") if tag in s.likely_tags(i)), None)


def order(s: Tagged, i: int) -> str | None:
    """ "that stops first": C5 has one tag for ordinals; those that modify a verb are adverbs."""
    counts = s.word(i) == "next" or s.word(i + 1) == "from" or s.tag(i + 1).startswith((*NOUN_PHRASE, "ORD", "PNI"))
    if s.tag(i) != "ORD" or counts:
        return None
    of_verb = s.tag(i - 1).startswith(("VV", "AV")) or (s.ends_phrase(i) and s.tag(i - 1).startswith("NN"))
    return "AV0" if of_verb else None


def pronoun_one(s: Tagged, i: int) -> str | None:
    """ "the smaller one": a pronoun, no number."""
    if s.word(i) != "one" or s.tag(i) != "CRD" or s.tag(i + 1).startswith(("AJ", "NN")):
        return None
    return "PNI" if s.tag(i - 1).startswith(("AT0", "AJ", "DT0")) else None


def manner(s: Tagged, i: int) -> str | None:
    """ "rightwards", "anticlockwise": words with these endings are adverbs, and adjectives only before a noun."""
    if not MANNER.fullmatch(s.word(i)) or not s.tag(i).startswith(("AJ", "NN")):
        return None
    return None if s.tag(i + 1).startswith("NN") else "AV0"


def possessive(s: Tagged, i: int) -> str | None:
    """ "a person s hand": the sentences of Ref-YouTube-VOS have no apostrophes."""
    return "POS" if s.word(i) == "s" and i else None


def unknown(s: Tagged, i: int) -> str | None:
    """An English word that HanTa does not know ("giraffe") is tagged as a noun, which most new words are."""
    return "NN1" if s.tag(i) == "UNC" and s.word(i).isascii() and s.word(i).isalpha() else None


RULES: tuple[Rule, ...] = (
    participle,
    side,
    compound,
    path,
    without_object,
    after_article,
    other,
    bare_form,
    relative_verb,
    order,
    pronoun_one,
    manner,
    possessive,
    unknown,
)
"""The first rule that applies to a word corrects its tag."""


def load() -> tuple[str, Callable[[list[str]], list[str]]]:
    """Return the version of the tagger, and the tagger: the words of one sentence -> their tags."""
    from HanTa import HanoverTagger

    model: Any = HanoverTagger.HanoverTagger("morphmodel_en.pgz")

    @lru_cache(maxsize=50_000)
    def scores(word: str) -> dict[str, float]:
        return {str(tag): float(score) for tag, score in model.tag_word(word)}

    def tag(words: list[str]) -> list[str]:
        sentence = Tagged(model, words, scores)
        for i in range(len(sentence.tags)):
            sentence.tags[i] = next((tag for rule in RULES if (tag := rule(sentence, i))), sentence.tags[i])
        return sentence.tags

    return f"{importlib.metadata.version('HanTa')}, rules {RULES_VERSION}", tag
