"""The text of an expression as a system's encoder reads it; spans keep pointing into the text as it was written."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Normalise = Literal["raw", "lower"]
"""raw: as written, which SOLA's released code gives RoBERTa; lower: lower case and single blanks, which the datasets of
ReferFormer, MeViS and ReferDINO give their encoders (`" ".join(text.lower().split())`)."""


def normalised(text: str, how: Normalise) -> tuple[str, NDArray[np.int32]]:
    """The text that is encoded, M characters, and int32 (M, 2): the range [start, end) in `text` that each was written as."""
    if how == "raw":
        return text, _places(np.arange(len(text)))
    lowered = text.lower()
    # A character may become two (İ); how many does not depend on its neighbours, though which may (Σ).
    written = np.repeat(np.arange(len(text)), [len(character.lower()) for character in text])
    words = list(re.finditer(r"\S+", lowered))
    kept = [i for word in words for i in (*range(*word.span()), word.end())][:-1]
    return " ".join(word.group() for word in words), _places(written[kept])


def written_spans(spans: NDArray[np.int32], places: NDArray[np.int32]) -> NDArray[np.int32]:
    """Spans (L, 2) of the encoded text as spans of the text as written; an empty span becomes (0, 0).

    places: (M, 2) of `normalised`.
    """
    out = np.zeros_like(spans)
    real = spans[:, 1] > spans[:, 0]
    out[real, 0], out[real, 1] = places[spans[real, 0], 0], places[spans[real, 1] - 1, 1]
    return out


def _places(written: NDArray[np.integer]) -> NDArray[np.int32]:
    return np.stack([written, written + 1], axis=1).astype(np.int32).reshape(-1, 2)
