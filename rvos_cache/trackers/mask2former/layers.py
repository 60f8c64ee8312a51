"""The layers of Mask2Former's decoder, of which VITA's and DVIS++'s heads are built too.

Parameters have their released names. Letters: B sequences, Q queries, L keys, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.errors import InputError

HEADS = 8
"""Attention heads in all released configurations; the tensors do not tell."""


def check_heads(channels: int, what: str) -> None:
    """Raises InputError, starting with `what`, if the channels cannot be split into HEADS heads."""
    if channels % HEADS:
        raise InputError(f"{what}: {channels} channels cannot be split into {HEADS} attention heads")


class Attention(nn.Module):
    """Multi-head attention whose parameters are named as in `nn.MultiheadAttention`.

    That class is not used because without gradients it materialises all attention weights, 4 GB for 500 frames of 200 queries.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * channels))
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, Q, C) from query (B, Q, C), key and value (B, L, C)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    """LayerNorm(x + self-attention); positions are added to queries and keys, not to values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attn = Attention(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """(B, Q, C) from x (B, Q, C) and position (Q, C)."""
        query = x if position is None else x + position
        return self.norm(x + self.self_attn(query, query, x))


class CrossAttention(nn.Module):
    """LayerNorm(x + cross-attention)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, Q, C) from x and query (B, Q, C), key and value (B, L, C); x is what the attention's output is added to."""
        return self.norm(x + self.multihead_attn(query, key, value))


class FeedForward(nn.Module):
    """LayerNorm(x + W2 ReLU(W1 x))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) from x (..., C)."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class Mlp(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(channels, width) for width in (channels, channels, out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from x (..., C)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
