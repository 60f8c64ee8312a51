"""DMVS's layers: attention blocks, the text projection, the motion expression encoder, the motion query decoder.

Shapes: B expressions, L words, T frames, Nf frame queries, Nv video queries, Q motion queries, C channels, K keys. True = real in
every mask. Equations are those of the paper (Fang et al., "Decoupled Motion Expression Video Segmentation", CVPR 2025).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8
LARGEST = 100_000
"""Enhanced frame queries in memory at once when no gradient is needed; all expressions of a long video have more."""


class Attention(nn.Module):
    """LayerNorm(x + multi-head attention); the position goes to queries and, in self-attention, to keys, never to values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(channels)
        init_xavier(self)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """x (B, Q, C), memory (B, K, C), mask (B, K), position (Q, C) -> (B, Q, C).

        Where a row of the mask has no key, x itself: a softmax over nothing is NaN.
        """
        query = x if position is None else x + position
        key = query if memory is x else memory
        padding = None if mask is None else ~mask
        none = None if mask is None else ~mask.any(1)
        if padding is not None and none is not None:
            padding = padding & ~none[:, None]
        out: Tensor = self.norm(x + self.attention(query, key, memory, key_padding_mask=padding, need_weights=False)[0])
        return out if none is None else torch.where(none[:, None, None], x, out)


class LiteralAttention(nn.Module):
    """x + softmax(x mᵀ / √C) m as Eqs. 1 to 4 print it: one head, nothing learned."""

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shapes as in `Attention`."""
        if mask is None:
            return x + F.scaled_dot_product_attention(x, memory, memory)
        none = ~mask.any(1)[:, None, None]
        read = F.scaled_dot_product_attention(x, memory, memory, attn_mask=mask[:, None] | none)
        return torch.where(none, x, x + read)


class FeedForward(nn.Module):
    """LayerNorm(x + W2 ReLU(W1 x))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        init_xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)."""
        out: Tensor = self.norm(x + self.linear2(F.relu(self.linear1(x))))
        return out


class MaskMlp(nn.Sequential):
    """H_m (Eq. 10): three linear layers with ReLU between them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, out)
        )


class TextProjection(nn.Sequential):
    """Word channels to the module's: linear, LayerNorm, dropout, as LMPM's and DsHmp's code has it."""

    def __init__(self, words: int, channels: int, dropout: float) -> None:
        super().__init__(nn.Linear(words, channels), nn.LayerNorm(channels, eps=1e-12), nn.Dropout(dropout))


class Pooler(nn.Module):
    """tanh(W x + b) of the first token, RoBERTa's <s>. roberta-base ships no W and b, so the code of LMPM and DsHmp reads random
    ones, never trained: here they are buffers, first values as in transformers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", nn.init.normal_(torch.empty(channels, channels), std=0.02))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, words: Tensor) -> Tensor:
        """words (B, L, D) -> (B, D)."""
        return F.linear(words[:, 0], self.weight, self.bias).tanh()


class MotionExpressionEncoder(nn.Module):
    """F_me: the sentence after attention to frame queries with static cues and to video queries with motion cues (Eqs. 1 to 4).

    static, motion: False leaves Eq. 1 or 2 out, so that the sentence attends to the unchanged queries.
    """

    def __init__(self, channels: int, form: Literal["mha", "literal"], static: bool, motion: bool) -> None:
        super().__init__()

        def block(used: bool) -> nn.Module | None:
            return (Attention(channels) if form == "mha" else LiteralAttention()) if used else None

        self.static, self.motion = block(static), block(motion)
        self.frames, self.videos = block(True), block(True)

    def forward(
        self,
        sentence: Tensor,
        cues: Tensor,
        static: Tensor,
        motion: Tensor,
        frame_queries: Tensor,
        frame_mask: Tensor,
        video_queries: Tensor,
    ) -> Tensor:
        """sentence (B, 1, C), cues (B, K, C) with the masks static and motion (B, K), frame_queries (B or 1, T, Nf, C) with
        frame_mask (B or 1, T), video_queries (B or 1, Nv, C) -> F_me (B, 1, C)."""
        b, (_, t, queries, _) = len(sentence), frame_queries.shape
        flat = frame_queries.flatten(1, 2)
        real = None if bool(frame_mask.all()) else frame_mask.repeat_interleave(queries, 1)
        size = b if torch.is_grad_enabled() else max(1, LARGEST // (t * queries))
        inputs = (sentence, cues, static, motion, flat, real, video_queries)
        return torch.cat([self._one(torch.arange(first, min(first + size, b)), *inputs) for first in range(0, b, size)])

    def _one(
        self,
        rows: Tensor,
        sentence: Tensor,
        cues: Tensor,
        static: Tensor,
        motion: Tensor,
        flat: Tensor,
        real: Tensor | None,
        video_queries: Tensor,
    ) -> Tensor:
        """The expressions `rows`; flat (B or 1, T·Nf, C), real (B or 1, T·Nf) or None."""

        def of(shared: Tensor) -> Tensor:
            return shared.expand(len(rows), *shared.shape[1:]) if len(shared) == 1 else shared[rows]

        x, f, v = sentence[rows], of(flat), of(video_queries)
        if self.static is not None:
            f = self.static(f, cues[rows], static[rows])
        if self.motion is not None:
            v = self.motion(v, cues[rows], motion[rows])
        assert self.frames is not None and self.videos is not None
        out: Tensor = self.videos(self.frames(x, f, None if real is None else of(real)), v)
        return out


class MotionQueryLayer(nn.Module):
    """Motion queries attend to the words, to F_me, with `videos` to the video queries, and to each other (Eq. 8).

    F_me is one key, so its softmax is 1 whatever the query: the block adds the same vector to all queries, and its query and key
    projections have no gradient. This follows from the paper's equations.
    """

    def __init__(self, channels: int, hidden: int, videos: bool) -> None:
        super().__init__()
        self.words = Attention(channels)
        self.sentence = Attention(channels)
        self.videos = Attention(channels) if videos else None
        self.others = Attention(channels)
        self.feed = FeedForward(channels, hidden)

    def forward(
        self,
        x: Tensor,
        words: Tensor,
        word_mask: Tensor,
        expression: Tensor,
        video_queries: Tensor,
        position: Tensor | None,
        real: Tensor | None,
    ) -> Tensor:
        """x (B, Q, C), words (B, L, C), word_mask (B, L), expression (B, 1, C), video_queries (B, Nv, C), position (Q, C), real
        (B, Q): None where all are -> (B, Q, C)."""
        x = self.sentence(self.words(x, words, word_mask), expression)
        if self.videos is not None:
            x = self.videos(x, video_queries)
        out: Tensor = self.feed(self.others(x, x, real, position))
        return out


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform first values of every matrix, as VITA's decoder and its relatives have them."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, L, D) over the mask (B, L) -> (B, D); of none zeros."""
    return x.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
