"""Normalisation of an expression's text before encoding, and the spans of words in the original text."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Normalise = Literal["raw", "lower"]
"""raw: as written, the input of RoBERTa in SOLA's released code. lower: lower case and single blanks, the input in the datasets
of ReferFormer, MeViS and ReferDINO (`" ".join(text.lower().split())`)."""


def normalise_text(text: str, mode: Normalise) -> tuple[str, NDArray[np.int32]]:
    """Return the normalised text of M characters, and their origins int32 (M, 2): the range [start, end) of each in `text`."""
    if mode == "raw":
        return text, _ranges(np.arange(len(text)))
    lowered = text.lower()
    # A character may become two (İ). Their number does not depend on the neighbours, though the character may (Σ).
    origins = np.repeat(np.arange(len(text)), [len(character.lower()) for character in text])
    words = list(re.finditer(r"\S+", lowered))
    indices = [i for word in words for i in (*range(*word.span()), word.end())][:-1]
    return " ".join(word.group() for word in words), _ranges(origins[indices])


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
