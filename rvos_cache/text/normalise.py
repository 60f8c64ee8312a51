"""Words of an expression, normalisation of its text before encoding, and the spans of words in the original text."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Normalise = Literal["raw", "lower", "plain"]
"""raw: as written, the input of RoBERTa in SOLA's released code. lower: lower case and single blanks, the input in the datasets
of ReferFormer, MeViS and ReferDINO (`" ".join(text.lower().split())`). plain: the words alone, in one spelling each, so that
capitals, blanks, quotes, full stops and commas, and typographic apostrophes make no difference."""

APOSTROPHES, HYPHENS = "'’‘ʼ´`", "-‐‑"
WORD = re.compile(rf"[\w\u0300-\u036f]+(?:[{HYPHENS}{APOSTROPHES}][\w\u0300-\u036f]+)*|[^\w\s]")
SPELLING = str.maketrans(dict.fromkeys(APOSTROPHES, "'") | dict.fromkeys(HYPHENS, "-"))
MARKS = ("P", "Sk", "C")
"""Unicode categories of what is no word: punctuation, accents on their own, invisible characters. Symbols (emoji) are words."""


def split_words(text: str) -> list[tuple[str, int, int]]:
    """Return the words and single punctuation marks, each with its character range [start, end)."""
    return [(m.group(), m.start(), m.end()) for m in WORD.finditer(text)]


def is_mark(word: str) -> bool:
    """Return whether an entry of `split_words` is a punctuation mark."""
    return all(unicodedata.category(character).startswith(MARKS) for character in word)


def plain_word(word: str) -> str:
    """Return the one spelling of a word: without case, with composed accents, ASCII apostrophes and hyphens."""
    return unicodedata.normalize("NFKC", word.translate(SPELLING)).casefold()


def normalise_text(text: str, mode: Normalise) -> tuple[str, NDArray[np.int32]]:
    """Return the normalised text of M characters, and their origins int32 (M, 2): the range [start, end) of each in `text`.

    Where "plain" changes the length of a word, each of its characters has the range of the word. A text of punctuation marks
    alone stays as it is.
    """
    if mode == "raw":
        return text, _ranges(np.arange(len(text)))
    if mode == "plain":
        return _plain(text)
    lowered = text.lower()
    # A character may become two (İ). Their number does not depend on the neighbours, though the character may (Σ).
    origins = np.repeat(np.arange(len(text)), [len(character.lower()) for character in text])
    words = list(re.finditer(r"\S+", lowered))
    indices = [i for word in words for i in (*range(*word.span()), word.end())][:-1]
    return " ".join(word.group() for word in words), _ranges(origins[indices])


def _plain(text: str) -> tuple[str, NDArray[np.int32]]:
    words = [(plain_word(word), start, end) for word, start, end in split_words(text) if not is_mark(word)]
    if not words:
        return normalise_text(text, "raw")
    origins: list[tuple[int, int]] = []
    for word, start, end in words:
        if origins:
            origins.append((origins[-1][1], start))
        same_length = len(word) == end - start
        origins += [(i, i + 1) for i in range(start, end)] if same_length else [(start, end)] * len(word)
    return " ".join(word for word, _, _ in words), np.array(origins, np.int32)


def original_spans(spans: NDArray[np.int32], origins: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return spans (L, 2) of the normalised text as spans of the original text; an empty span becomes (0, 0).

    origins: int32 (M, 2) from `normalise_text`.
    """
    out = np.zeros_like(spans)
    filled = spans[:, 1] > spans[:, 0]
    out[filled, 0], out[filled, 1] = origins[spans[filled, 0], 0], origins[spans[filled, 1] - 1, 1]
    return out


def _ranges(starts: NDArray[np.integer]) -> NDArray[np.int32]:
    return np.stack([starts, starts + 1], axis=1).astype(np.int32).reshape(-1, 2)
