"""Tokens and words of all training videos on the device: a step gathers its rows there instead of copying them from the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rvos_select.data.samples import VideoSample

Residence = Literal["auto", "true", "false"]
SHARE = 0.5
"""Share of the GPU's free memory that they may take with "auto"; the rest is the module's."""


@dataclass(frozen=True)
class Tables:
    """tokens: (rows, C), words: (rows, D), as stored; the first row of each is zeros, which padding gathers."""

    tokens: Tensor
    words: Tensor

    def gather(self, tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """tokens float32 (V, N, T, C) of rows (V, N, T), and words float32 (B, L, D) of rows (B, L), on the device."""
        pairs = ((self.tokens, tokens), (self.words, words))
        out = [table.index_select(0, rows.reshape(-1)).reshape(*rows.shape, table.shape[1]).float() for table, rows in pairs]
        return out[0], out[1]


@dataclass(frozen=True)
class VideoRows:
    """Where a video is in the tables. tokens: int64 (N, T), row of each token; words: of each expression the row of its first."""

    tables: Tables
    tokens: Tensor
    words: tuple[int, ...]


@dataclass(frozen=True)
class BatchRows:
    """The rows of a batch: tokens int64 (V, N, T), words int64 (B, L); 0 is padding."""

    tables: Tables
    tokens: Tensor
    words: Tensor

    def gather(self) -> tuple[Tensor, Tensor]:
        """See `Tables.gather`; the rows are on the device of the tables."""
        return self.tables.gather(self.tokens, self.words)

    def check_device(self, device: torch.device) -> None:
        """Raises ValueError where the tables are on another kind of device."""
        if self.tables.tokens.device.type != device.type:
            raise ValueError(f"the batch's tokens are on {self.tables.tokens.device}, expected {device}: see resident()")


def resident(samples: Sequence[VideoSample], device: torch.device, setting: Residence) -> list[VideoSample]:
    """The samples, whose batches gather tokens and words on `device` where `setting` says so: auto on a GPU that has the memory."""
    if setting == "false" or not samples or (setting == "auto" and not _fits(samples, device)):
        return list(samples)
    tokens, words = (torch.cat([part.new_zeros(1, part.shape[1]), *parts]) for part, parts in _parts(samples))
    tables = Tables(tokens.to(device), words.to(device))
    out, token, word = [], 1, 1
    for sample in samples:
        n, t = sample.tokens.shape[:2]
        starts = []
        for each in sample.words:
            starts.append(word)
            word += len(each.vectors)
        rows = torch.arange(token, token + n * t).reshape(n, t)
        out.append(replace(sample, resident=VideoRows(tables, rows, tuple(starts))))
        token += n * t
    return out


def word_rows(lengths: Sequence[int], starts: Sequence[int]) -> Tensor:
    """int64 (B, L): the rows of the words of each expression, 0 in padding."""
    out = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length, start in zip(out, lengths, starts):
        row[:length] = torch.arange(start, start + length)
    return out


def _parts(samples: Sequence[VideoSample]) -> list[tuple[Tensor, list[Tensor]]]:
    """The first part and all parts of each table."""
    tokens = [sample.tokens.flatten(0, 1) for sample in samples]
    words = [torch.from_numpy(each.vectors) for sample in samples for each in sample.words]
    return [(tokens[0], tokens), (words[0], words)]


def _fits(samples: Sequence[VideoSample], device: torch.device) -> bool:
    """Whether `device` is a GPU whose free memory holds them."""
    if device.type != "cuda":
        return False
    size = sum(s.tokens.nbytes + sum(w.vectors.nbytes for w in s.words) for s in samples)
    free, _ = torch.cuda.mem_get_info(device)
    return size <= SHARE * free
