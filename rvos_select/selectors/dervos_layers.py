"""DeRVOS's layers: attention blocks, bi-directional attention of cells and words, and the layers of TAIS's three parts.

The summary of the paper (CVPR 2026) names the parts and their order; sizes and forms that it leaves open are those of the relatives
(Mask2Former's blocks, DsHmp's bi-directional attention). Shapes: B sequences, L words, P cells of a map, N tracks, C channels,
Q queries, K keys. True = real in every mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rvos_select.selectors.dmvs_layers import FeedForward, init_xavier

HEADS = 8
FIRST_SCALE = 1e-4
"""First values of the scales of `BiAttention`'s updates. Source: DsHmp's code."""


class Attention(nn.Module):
    """LayerNorm(x + multi-head attention(x + its position, memory + its position, memory))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(channels)
        init_xavier(self)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        position: Tensor | None = None,
        memory_position: Tensor | None = None,
    ) -> Tensor:
        """x (B, Q, C), memory (B, K, C), mask bool (B, K), position (B or 1, Q, C), memory_position (B or 1, K, C) -> (B, Q, C).

        Where a row of the mask has no key, x itself: a softmax over nothing is NaN.
        """
        query = x if position is None else x + position
        key = memory if memory_position is None else memory + memory_position
        if mask is None:
            out: Tensor = self.norm(x + self.attention(query, key, memory, need_weights=False)[0])
            return out
        none = ~mask.any(1)
        padding = ~mask & ~none[:, None]
        out = self.norm(x + self.attention(query, key, memory, key_padding_mask=padding, need_weights=False)[0])
        return torch.where(none[:, None, None], x, out)


class BiAttention(nn.Module):
    """Cells and words attend to each other with one affinity, whose softmax is taken over the words and over the cells.

    Norms before, scaled updates behind, as in DsHmp's BiAttention; unlike there the residual is the input, not its norm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cell_norm, self.word_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.cell_query, self.word_query = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.cell_value, self.word_value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.cell_out, self.word_out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.cell_scale = nn.Parameter(torch.full((channels,), FIRST_SCALE))
        self.word_scale = nn.Parameter(torch.full((channels,), FIRST_SCALE))
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, cells: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """cells (B, P, C), words (B, L, C), mask bool (B, L) -> both, updated. Without a word the cells stay as they are."""
        x, y = self.cell_norm(cells), self.word_norm(words)
        affinity = _heads(self.cell_query(x)) @ _heads(self.word_query(y)).transpose(2, 3)
        affinity = affinity.float() / math.sqrt(x.shape[-1] // HEADS)
        none = ~mask.any(1)
        of_words = affinity.masked_fill(~(mask | none[:, None])[:, None, None], -torch.inf).softmax(-1)
        of_cells = affinity.transpose(2, 3).softmax(-1)
        read_words = self.cell_out(_joined(of_words.to(x.dtype) @ _heads(self.word_value(y))))
        read_cells = self.word_out(_joined(of_cells.to(y.dtype) @ _heads(self.cell_value(x))))
        read_words = read_words.masked_fill(none[:, None, None], 0.0)
        return cells + self.cell_scale * read_words, words + self.word_scale * read_cells


class SemLayer(nn.Module):
    """A layer of SemDecoder: motion queries attend to each other and to motion words and sentences."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.others, self.text = Attention(channels), Attention(channels)
        self.feed = FeedForward(channels, hidden)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, position: Tensor, memory_position: Tensor | None) -> Tensor:
        """x (B, Q, C), memory (B, K, C), mask (B, K), position (1, Q, C), memory_position (B, K, C) -> (B, Q, C)."""
        x = self.others(x, x, None, position, position)
        out: Tensor = self.feed(self.text(x, memory, mask, position, memory_position))
        return out


class CfmaLayer(nn.Module):
    """A layer of the cross-frame multimodal aligner: cells and words meet, then tracks attend to the cells of the frame, to its words,
    and to each other.

    Without maps there are no cells, and it is the rest alone.
    """

    def __init__(self, channels: int, hidden: int, maps: bool) -> None:
        super().__init__()
        self.meet = BiAttention(channels) if maps else None
        self.cells = Attention(channels) if maps else None
        self.words, self.others = Attention(channels), Attention(channels)
        self.feed = FeedForward(channels, hidden)

    def forward(
        self,
        tracks: Tensor,
        cells: Tensor | None,
        words: Tensor,
        word_mask: Tensor,
        track_mask: Tensor,
        place: Tensor | None,
        frames: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """tracks (B·T, N, C), cells (B·T, P, C), words (B·T, L, C), word_mask (B·T, L), track_mask (B·T, N), place (1, P, C) of the
        cells -> tracks, cells, words. frames bool (B, T): tracks attend to the cells of all real frames of their clip; None: to
        those of their own frame."""
        if self.meet is not None:
            assert self.cells is not None and cells is not None
            cells, words = self.meet(cells, words, word_mask)
            tracks = self._see(tracks, cells, place, frames)
        tracks = self.words(tracks, words, word_mask)
        tracks = self.others(tracks, tracks, track_mask)
        return self.feed(tracks), cells, words

    def _see(self, tracks: Tensor, cells: Tensor, place: Tensor | None, frames: Tensor | None) -> Tensor:
        assert self.cells is not None
        if frames is None:
            out: Tensor = self.cells(tracks, cells, memory_position=place)
            return out
        b, t = frames.shape
        queries, keys = (x.reshape(b, -1, x.shape[-1]) for x in (tracks, cells))
        position = None if place is None else place.repeat(1, t, 1)
        mask = frames.repeat_interleave(cells.shape[1], 1)
        seen_by: Tensor = self.cells(queries, keys, mask, memory_position=position)
        return seen_by.reshape(tracks.shape)


class MgisLayer(nn.Module):
    """A layer of the motion-guided implicit selector: each track attends to itself over time, then to the motion queries."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.frames, self.motion = Attention(channels), Attention(channels)
        self.feed = FeedForward(channels, hidden)

    def forward(self, x: Tensor, motion: Tensor, frame_mask: Tensor, code: Tensor) -> Tensor:
        """x (B, N, T, C), motion (B, Q, C), frame_mask (B, T), code (B, T, C) of the frames -> (B, N, T, C)."""
        b, n, t, c = x.shape
        mask, code = (part.repeat_interleave(n, 0) for part in (frame_mask, code))
        flat = x.reshape(b * n, t, c)
        flat = self.frames(flat, flat, mask, code, code)
        out: Tensor = self.feed(self.motion(flat.reshape(b, n * t, c), motion))
        return out.reshape(b, n, t, c)


class DirectLayer(nn.Module):
    """A layer of the Text-Direct Integrator: tracks attend to the words of the frame."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.words = Attention(channels)
        self.feed = FeedForward(channels, hidden)

    def forward(self, tracks: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """tracks (B·T, N, C), words (B·T, L, C), word_mask (B·T, L) -> (B·T, N, C)."""
        out: Tensor = self.feed(self.words(tracks, words, word_mask))
        return out


def _heads(x: Tensor) -> Tensor:
    """(B, K, C) -> (B, HEADS, K, C / HEADS)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """The inverse of `_heads`."""
    return x.transpose(1, 2).flatten(2)
