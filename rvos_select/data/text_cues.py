"""Parts of a batch that the words of an expression have next to their vectors: spans, ids and cue masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.text.cues import Tagger, cue, particles
from rvos_cache.types import Cue, Words


def _cue_mask(kind: Cue, tags: Sequence[str], tagger: Tagger) -> list[bool]:
    return [cue(tag, tagger) == kind for tag in tags]


CUE_PARTS: dict[str, Callable[[Sequence[str], Tagger], list[bool]]] = {
    "motion_words": partial(_cue_mask, "motion"),
    "static_words": partial(_cue_mask, "static"),
    "particle_words": particles,
}
"""Part of a batch -> which words it marks, from their tags."""
WORD_PARTS = ("spans", "word_ids", *CUE_PARTS)
"""The parts of a batch that belong to the words of its sentences."""


WITH_IDS = "give words of an encoder that stores ids, such as --encoder beit3"


def pad_words(words: Sequence[Words]) -> tuple[Tensor, Tensor]:
    """Word vectors (B, L, D) float32 and word_mask (B, L)."""
    length = max(len(w.vectors) for w in words)
    out = torch.zeros(len(words), length, words[0].vectors.shape[1])
    mask = torch.zeros(len(words), length, dtype=torch.bool)
    for i, w in enumerate(words):
        out[i, : len(w.vectors)] = torch.from_numpy(w.vectors.astype(np.float32))
        mask[i, : len(w.vectors)] = True
    return out, mask


def word_parts(words: Sequence[Words], taggers: Sequence[Tagger], length: int, requires: Sequence[str]) -> dict[str, Any]:
    """Those of spans (B, L, 2) and word_ids, motion_words, static_words, particle_words (B, L) in `requires`; L = `length`.

    Raises InputError when word_ids are required and a word has none. Cues follow from each expression's tags, by its own tagger.
    """
    parts: dict[str, Any] = {}
    if "spans" in requires:
        spans: NDArray[np.int32] = np.zeros((len(words), length, 2), np.int32)
        for i, w in enumerate(words):
            spans[i, : len(w.spans)] = w.spans
        parts["spans"] = torch.from_numpy(spans)
    if "word_ids" in requires:
        ids = torch.zeros(len(words), length, dtype=torch.long)
        for i, w in enumerate(words):
            if w.ids is None:
                raise InputError(f"the words have no ids; {WITH_IDS}")
            ids[i, : len(w.ids)] = torch.from_numpy(w.ids)
        parts["word_ids"] = ids
    for name, marks in CUE_PARTS.items():
        if name in requires:
            mask = torch.zeros(len(words), length, dtype=torch.bool)
            for i, (w, tagger) in enumerate(zip(words, taggers)):
                mask[i, : len(w.tags)] = torch.tensor(marks(w.tags, tagger))
            parts[name] = mask
    return parts
