"""Batches padded to a few shapes, in tensors that stay where they are: what a recorded training step reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rvos_select.data.batch import Batch
from rvos_select.data.mask_facts import MaskFacts
from rvos_select.data.resident import BatchRows, Tables
from rvos_select.data.transfer import copy_into, one_buffer

FRAMES, TRACKS, WORDS, EXPRESSIONS = 16, 8, 8, 4
"""Smallest sizes, of which the padded ones are multiples."""


class BatchShape(NamedTuple):
    """V, B, N, T and L after padding; sets: K, the different candidate sets of expressions that share a video, 0: they have the same
    candidates, or each has a video of its own."""

    videos: int
    expressions: int
    tracks: int
    frames: int
    words: int
    sets: int


def padded_shape(batch: Batch) -> BatchShape:
    """The shape that a batch is padded to: at most a quarter more of each size, or the smallest."""
    videos, n, t, _ = batch.tokens.shape
    b, length = batch.word_mask.shape
    expressions = b if b == 1 else padded_size(b, EXPRESSIONS)
    sets = batch.mask_facts.candidate_sets
    return BatchShape(
        1 if videos == 1 else expressions,
        expressions,
        padded_size(n, TRACKS),
        padded_size(t, FRAMES),
        padded_size(length, WORDS),
        0 if sets is None else padded_size(len(sets), EXPRESSIONS),
    )


def padded_size(size: int, smallest: int) -> int:
    """`size` rounded up to a multiple of `smallest`, and of a power of two that is above an eighth of it."""
    step = max(smallest, 1 << max(size.bit_length() - 3, 0))
    return -(-size // step) * step


class PaddedBatch:
    """The tensors of a batch of one shape, on `device`, which `load` fills with those of a batch.

    like: a batch of this shape, whose tokens and words are in tables of the device, or are copied from the host.
    tensors: "tokens": int64 (V, N, T) and "words": int64 (B, L), rows of the tables, or float32 (V, N, T, C) and (B, L, D) without
    them; "target": float32 (B, N); "frame_mask": bool (V, T); "track_mask": bool (B, N); "word_mask": bool (B, L); where there are
    different candidate sets, "candidate_sets": bool (K, N) and "set_of": int64 (B,). All are parts of `buffer`.
    """

    def __init__(self, like: Batch, device: torch.device) -> None:
        self.shape = padded_shape(like)
        v, b, n, t, length, k = self.shape
        self.tables: Tables | None = None if like.rows is None else like.rows.tables
        # Of tables: the row of each token and word; else their channels.
        number = torch.float32 if self.tables is None else torch.int64
        channels, word_channels = ((like.tokens.shape[3],), (like.words.shape[2],)) if self.tables is None else ((), ())
        self.layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "tokens": ((v, n, t, *channels), number),
            "words": ((b, length, *word_channels), number),
            "target": ((b, n), torch.float32),
            "frame_mask": ((v, t), torch.bool),
            "track_mask": ((b, n), torch.bool),
            "word_mask": ((b, length), torch.bool),
        }
        if k:
            self.layout |= {"candidate_sets": ((k, n), torch.bool), "set_of": ((b,), torch.int64)}
        self.buffer, self.tensors = one_buffer(self.layout, device)

    def load(self, batch: Batch) -> None:
        """Fill the tensors with those of a batch of the host, zeros behind them. The host does not wait for the copy.

        Raises ValueError without targets.
        """
        if batch.target is None:
            raise ValueError("a training step needs Batch.target; this split hides its ground truth")
        rows, facts = batch.rows, batch.mask_facts
        values: dict[str, Tensor] = {
            "tokens": batch.tokens if rows is None else rows.tokens,
            "words": batch.words if rows is None else rows.words,
            "target": batch.target,
            "frame_mask": batch.frame_mask,
            "track_mask": batch.track_mask,
            "word_mask": batch.word_mask,
        }
        if facts.candidate_sets is not None and facts.set_of is not None:
            values |= {"candidate_sets": facts.candidate_sets, "set_of": facts.set_of}
        copy_into(self.buffer, self.layout, values)

    def batch(self) -> Batch:
        """The padded batch. Its tokens and words are gathered when this is called, from rows that were loaded by then."""
        tensors = self.tensors
        tokens, words = tensors["tokens"], tensors["words"]
        if self.tables is not None:
            tokens, words = BatchRows(self.tables, tokens, words).gather()
        padded = Batch(tokens, tensors["frame_mask"], tensors["track_mask"], words, tensors["word_mask"], tensors["target"])
        # What may be padding is never called real, so that the facts hold for every batch of this shape.
        vars(padded)["mask_facts"] = MaskFacts(
            frames_real=False, frames_first=True, words_real=False, tracks_real=False, used=None,
            candidate_sets=tensors.get("candidate_sets"), set_of=tensors.get("set_of"),
        )  # fmt: skip
        return padded
