"""Blocks that all parts of SSA share: attention, feed-forward layers, sine positions.

Parameters have their released names (Tavarich/SSA, 02f4046). Letters: B batch, Q queries, K keys, C channels, h w cells of a map.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8
"""Attention heads of every layer but the fusion blocks; no shape of a checkpoint depends on it."""
TEMPERATURE = 10_000
"""Of the sine positions."""


class Attention(nn.Module):
    """Multi-head attention with the parameters of `nn.MultiheadAttention` and its first values."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * channels, channels)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)
        self.dropout = dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, Q, C), key and value (B, K, C) -> (B, Q, C). mask: bool (B, K) or (B, Q, K), True where a key is visible.

        A query that sees no key sees all of them: a softmax over nothing is NaN.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases)
        )
        if mask is not None:
            mask = mask[:, None] if mask.ndim == 2 else mask
            mask = (mask | ~mask.any(-1, keepdim=True))[:, None]
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class CrossAttention(nn.Module):
    """CA(x, m; a, b) = LayerNorm(x + attention(x + a, m + b, m))."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.multihead_attn = Attention(channels, dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        position: Tensor | None = None,
        memory_position: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, Q, C), memory (B, K, C), position and memory_position broadcast to them -> (B, Q, C). mask: see `Attention`."""
        query = x if position is None else x + position
        key = memory if memory_position is None else memory + memory_position
        out: Tensor = self.norm(x + self.multihead_attn(query, key, memory, mask))
        return out


class SelfAttention(nn.Module):
    """SA(x; a) = CA(x, x; a, a)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attn = Attention(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (B, Q, C), position broadcast to it -> (B, Q, C). mask: see `Attention`."""
        query = x if position is None else x + position
        out: Tensor = self.norm(x + self.self_attn(query, query, x, mask))
        return out


class FeedForward(nn.Module):
    """LayerNorm(x + W2 ReLU(W1 x))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = self.norm(x + self.linear2(F.relu(self.linear1(x))))
        return out


class Mlp(nn.Module):
    """Linear layers of the widths `sizes` with ReLU between them."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., sizes[0]) -> (..., sizes[-1])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class TextProjection(nn.Module):
    """The sentence in the channels of the decoders: linear, LayerNorm, dropout."""

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(words, channels)
        self.layer_norm = nn.LayerNorm(channels, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., C)."""
        out: Tensor = self.dropout(self.layer_norm(self.fc(x)))
        return out


def sines(positions: Tensor, channels: int) -> Tensor:
    """(..., channels): s(p)_k = sin (k even) or cos (k odd) of p / 10000^(2⌊k/2⌋ / channels), for positions p (...)."""
    k = torch.arange(channels, device=positions.device)
    angles = positions[..., None] / TEMPERATURE ** (2 * (k // 2) / channels)
    return torch.where(k % 2 == 0, angles.sin(), angles.cos())


def sequence_positions(length: int, channels: int, device: torch.device) -> Tensor:
    """Sine positions (length, channels) of 1, 2, …, length."""
    return sines(torch.arange(1, length + 1, device=device, dtype=torch.float32), channels)


@lru_cache(maxsize=16)
def grid_positions(size: tuple[int, int], channels: int, normalised: bool, device: torch.device) -> Tensor:
    """Sine positions (h·w, channels) of the cells of a map: the row in the first half of the channels, the column in the second.

    Rows and columns are counted from 1; normalised: scaled so that the last one is 2π.
    """
    halves = []
    for length in size:
        steps = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        halves.append(sines(steps * 2 * math.pi / (length + 1e-6) if normalised else steps, channels // 2))
    rows, columns = halves
    h, w = size
    return torch.cat([rows[:, None].expand(h, w, -1), columns[None].expand(h, w, -1)], -1).flatten(0, 1)


def tokens_of(maps: Tensor) -> Tensor:
    """Maps (F, C, h, w) as tokens (F, h·w, C)."""
    return maps.flatten(2).transpose(1, 2)


def map_of(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (F, h·w, C) as maps (F, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, size)
