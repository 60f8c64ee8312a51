"""Cues of a sentence: which words speak of motion and which of looks.

Stored are raw part-of-speech tags; which of them are cues is the reader's choice, with defaults here. The default tagger
is HanTa (its model is inside the wheel, C5 tags, mended in `hanta`); spaCy (Penn tags) when its model is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.types import Cue

WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]", re.UNICODE)
Tagger = Literal["hanta", "spacy"]
DEFAULT_TAGGER: Tagger = "hanta"
CUES: dict[Tagger, dict[Cue, tuple[str, ...]]] = {
    "hanta": {"motion": ("VV", "VDG", "VDI", "VDN", "AV0", "AVP"), "static": ("NN", "NP0", "AJ", "PR", "CRD", "ORD")},
    "spacy": {"motion": ("VB", "RB", "RP"), "static": ("NN", "JJ", "IN", "CD")},
}
"""Prefixes of the tags of each tagger (C5 and Penn) that are cues by default."""
ATTACHED: dict[Tagger, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hanta": (("VV", "VDG", "VDI", "VDN"), ("PR", "AVP")),
    "spacy": (("VB",), ("IN", "RP", "TO")),
}
"""Prefixes of the tags of verbs, and of what may belong to one."""
MAX_TAGGED = 200
"""Words of a sentence that are tagged together; HanTa's lattice is linear in it, and no real sentence is longer."""


def cue(tag: str, tagger: Tagger = DEFAULT_TAGGER) -> Cue:
    """The default meaning of a raw tag: motion (verbs, adverbs), static (nouns, adjectives, prepositions), other."""
    for name, prefixes in CUES[tagger].items():
        if tag.startswith(prefixes):
            return name
    return "other"


def particles(tags: Sequence[str], tagger: Tagger = DEFAULT_TAGGER) -> list[bool]:
    """Which raw tags are of particles and prepositions that belong to a verb ("playing with", "turning quickly around").

    Without a parser: those behind a verb of motion, with nothing but adverbs and their like between; "" parts as a word does.
    """
    verbs, prepositions = ATTACHED[tagger]
    found, behind = [], False
    for tag in tags:
        attached = behind and tag.startswith(prepositions)
        behind = tag.startswith(verbs) or attached or (behind and cue(tag, tagger) == "motion")
        found.append(attached)
    return found


def split_words(text: str) -> list[tuple[str, int, int]]:
    """Words and single marks of punctuation with their character range [start, end)."""
    return [(m.group(), m.start(), m.end()) for m in WORD.finditer(text)]


def tag_words(words: list[str], tagger: Tagger = DEFAULT_TAGGER) -> list[str]:
    """One raw part-of-speech tag per word. Raises InputError when spaCy or its model is not installed."""
    tags: list[str] = []
    for start in range(0, len(words), MAX_TAGGED):
        tags += _tagger(tagger)[1](words[start : start + MAX_TAGGED])
    return tags


def align_tags(text: str, spans: NDArray[np.int32], tagger: Tagger = DEFAULT_TAGGER) -> tuple[str, ...]:
    """The tag of each encoder token: that of the word whose characters it overlaps first; "" for special tokens.

    spans: int32 (L, 2), character ranges of the tokens.
    """
    words = split_words(text)
    tags = tag_words([w for w, _, _ in words], tagger)
    found, at = [], 0
    for start, end in spans:
        if end <= start:
            found.append("")
            continue
        while at + 1 < len(words) and words[at][2] <= start:
            at += 1
        overlaps = bool(words) and words[at][1] < end and words[at][2] > start
        found.append(tags[at] if overlaps else "")
    return tuple(found)


def tagger_version(tagger: Tagger) -> dict[str, str]:
    """What made the tags, for the card of a text cache: {tagger: version of its model and rules}. Raises like `tag_words`."""
    return {tagger: _tagger(tagger)[0]}


@lru_cache(maxsize=2)
def _tagger(name: Tagger) -> tuple[str, Callable[[list[str]], list[str]]]:
    if name == "spacy":
        return _spacy()
    from rvos_cache.text.hanta import load

    return load()


def _spacy() -> tuple[str, Callable[[list[str]], list[str]]]:
    try:
        import spacy

        model = spacy.load("en_core_web_sm", disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        raise InputError(
            "tagger 'spacy' wants the package and its model: pip install spacy; python -m spacy download en_core_web_sm"
        ) from error

    def tag(words: list[str]) -> list[str]:
        doc = model(spacy.tokens.Doc(model.vocab, words=words))
        return [token.tag_ for token in doc]

    return f"{model.meta['name']} {model.meta['version']}", tag
