"""Cues of a sentence: the words that describe motion and the words that describe appearance.

A text cache stores raw part-of-speech tags. Which of them are cues is decided by its reader; the defaults are here. The default
tagger is HanTa (C5 tags, corrected in `hanta`; its model is part of the package); spaCy (Penn tags) needs its own model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.text.normalise import is_mark, plain_word, split_words
from rvos_cache.types import Cue

Tagger = Literal["hanta", "spacy"]
DEFAULT_TAGGER: Tagger = "hanta"
CUES: dict[Tagger, dict[Cue, tuple[str, ...]]] = {
    "hanta": {"motion": ("VV", "VDG", "VDI", "VDN", "AV0", "AVP"), "static": ("NN", "NP0", "AJ", "PR", "CRD", "ORD")},
    "spacy": {"motion": ("VB", "RB", "RP"), "static": ("NN", "JJ", "IN", "CD")},
}
"""Tagger -> the prefixes of its tags (C5 and Penn) that are cues by default."""
ATTACHED: dict[Tagger, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hanta": (("VV", "VDG", "VDI", "VDN"), ("PR", "AVP")),
    "spacy": (("VB",), ("IN", "RP", "TO")),
}
"""Tagger -> the prefixes of the tags of verbs, and of the words that may belong to a verb."""
WORDS_VERSION = 2
"""Version of `tag_text`; a text cache is bound to it. Version 1 gave the tagger every word as written."""
PUNCTUATION = "PUN"
"""The tag of punctuation marks that the tagger does not see."""
SEPARATORS = frozenset(",;:()–—-")
"""Punctuation marks inside a sentence that separate its phrases, so that the tagger needs them."""
MAX_TAGGED = 200
"""Maximum number of words that are tagged together. HanTa's lattice is linear in it, and no real sentence is longer."""


def cue(tag: str, tagger: Tagger = DEFAULT_TAGGER) -> Cue:
    """Return the default cue of a raw tag: motion (verbs, adverbs), static (nouns, adjectives, prepositions) or other."""
    for name, prefixes in CUES[tagger].items():
        if tag.startswith(prefixes):
            return name
    return "other"


def particles(tags: Sequence[str], tagger: Tagger = DEFAULT_TAGGER) -> list[bool]:
    """Return for each raw tag whether its word is a particle or preposition of a verb ("playing with", "turning around").

    Found without a parser: those after a verb, with only motion words (such as adverbs) between; the tag "" separates too.
    """
    verbs, prepositions = ATTACHED[tagger]
    attached, after_verb = [], False
    for tag in tags:
        attached.append(after_verb and tag.startswith(prepositions))
        after_verb = tag.startswith(verbs) or attached[-1] or (after_verb and cue(tag, tagger) == "motion")
    return attached


def tag_words(words: list[str], tagger: Tagger = DEFAULT_TAGGER) -> list[str]:
    """Return one raw part-of-speech tag per word. Raises InputError: if spaCy or its model is required and not installed."""
    tags: list[str] = []
    for start in range(0, len(words), MAX_TAGGED):
        tags += _tagger(tagger)[1](words[start : start + MAX_TAGGED])
    return tags


def tag_text(text: str, tagger: Tagger = DEFAULT_TAGGER) -> list[tuple[int, int, str]]:
    """Return the range [start, end) and the tag of each word and punctuation mark of a sentence.

    The tags do not depend on capitals, blanks, quotes, punctuation at the ends of the sentence, or the form of apostrophes.
    Raises like `tag_words`.
    """
    words = split_words(text)
    real = [i for i, (word, _, _) in enumerate(words) if not is_mark(word)]
    separators = [i for i in range(real[0], real[-1]) if words[i][0] in SEPARATORS] if real else []
    tagged = sorted([*real, *separators])
    tags = dict(zip(tagged, tag_words([plain_word(words[i][0]) for i in tagged], tagger)))
    return [(start, end, tags.get(i, PUNCTUATION)) for i, (_, start, end) in enumerate(words)]


def align_tags(text: str, spans: NDArray[np.int32], tagger: Tagger = DEFAULT_TAGGER) -> tuple[str, ...]:
    """Return the tag of each of L tokens: that of the first word whose characters it overlaps; "" for special tokens.

    spans: int32 (L, 2), character ranges of the tokens.
    """
    words = tag_text(text, tagger)
    aligned, i = [], 0
    for start, end in spans:
        if end <= start:
            aligned.append("")
            continue
        while i + 1 < len(words) and words[i][1] <= start:
            i += 1
        overlaps = bool(words) and words[i][0] < end and words[i][1] > start
        aligned.append(words[i][2] if overlaps else "")
    return tuple(aligned)


def tagger_version(tagger: Tagger) -> dict[str, str]:
    """Return {tagger: version of its model and rules}, for the card of a text cache. Raises like `tag_words`."""
    return {tagger: f"{_tagger(tagger)[0]}, words {WORDS_VERSION}"}


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
            "tagger 'spacy' requires the package and its model: pip install spacy; python -m spacy download en_core_web_sm"
        ) from error

    def tag(words: list[str]) -> list[str]:
        doc = model(spacy.tokens.Doc(model.vocab, words=words))
        return [token.tag_ for token in doc]

    return f"{model.meta['name']} {model.meta['version']}", tag
