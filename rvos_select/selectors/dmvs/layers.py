"""DMVS's layers: attention blocks, the text projection, the motion expression encoder, the motion query decoder.

Shapes: B expressions, L words, T frames, Nf frame queries, Nv video queries, Q motion queries, C channels, K keys. True = real in
every mask. Equations are those of the paper (Fang et al., "Decoupled Motion Expression Video Segmentation", CVPR 2025).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.trackers.mask2former import layers

HEADS = 8
LARGEST = 100_000
"""Enhanced frame queries in memory at once when no gradient is needed; all expressions of a long video have more."""


class Keys(NamedTuple):
    """Which keys an attention reads, for all blocks that read the same ones."""

    allowed: Tensor
    """bool (B, 1, K); a row without a real key has all, since a softmax over nothing is NaN."""
    some: Tensor | None
    """bool (B, 1, 1): the row has a real key; None: each has one."""

    @classmethod
    def of(cls, mask: Tensor, every: bool = False) -> Keys:
        """Of bool (B, K), True = real. every: each row is known to have a real key."""
        allowed = mask[:, None]
        if every:
            return cls(allowed, None)
        some = allowed.any(2, keepdim=True)
        return cls(allowed | ~some, some)


class Attention(nn.Module):
    """LayerNorm(x + multi-head attention); the position goes to queries and, in self-attention, to keys, never to values.

    The parameters are those of `nn.MultiheadAttention`, which takes twice as many kernels, and without gradients holds all weights
    of an attention in memory.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(channels)
        init_xavier(self)

    def forward(self, x: Tensor, memory: Tensor, keys: Keys | None = None, position: Tensor | None = None) -> Tensor:
        """x (B, Q, C), memory (B, K, C), position (Q, C) -> (B, Q, C). keys: None where all K are real.

        Where a row has no real key, x itself.
        """
        own, c = self.attention, x.shape[-1]
        weight, bias = map(_once_cast, (own.in_proj_weight, own.in_proj_bias))
        if keys is None and memory.shape[1] == 1 and memory is not x:
            # The softmax over one key is 1 whatever the query, so every query reads the same value.
            read: Tensor = own.out_proj(F.linear(memory, weight[2 * c :], bias[2 * c :]))
            return self._added(x, read, None)
        query = x if position is None else x + position
        if memory is x and position is None:
            q, k, v = F.linear(x, weight, bias).chunk(3, -1)
        elif memory is x:
            (qk_weight, v_weight), (qk_bias, v_bias) = weight.split([2 * c, c]), bias.split([2 * c, c])
            (q, k), v = F.linear(query, qk_weight, qk_bias).chunk(2, -1), F.linear(x, v_weight, v_bias)
        else:
            (q_weight, kv_weight), (q_bias, kv_bias) = weight.split([c, 2 * c]), bias.split([c, 2 * c])
            q, (k, v) = F.linear(query, q_weight, q_bias), F.linear(memory, kv_weight, kv_bias).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=None if keys is None else keys.allowed[:, None])
        return self._added(x, own.out_proj(read.transpose(1, 2).flatten(2)), keys)

    def _added(self, x: Tensor, read: Tensor, keys: Keys | None) -> Tensor:
        out: Tensor = self.norm(x + read)
        return out if keys is None or keys.some is None else torch.where(keys.some, out, x)


class LiteralAttention(nn.Module):
    """x + softmax(x mᵀ / √C) m as Eqs. 1 to 4 print it: one head, nothing learned."""

    def forward(self, x: Tensor, memory: Tensor, keys: Keys | None = None) -> Tensor:
        """Shapes as in `Attention`."""
        read = F.scaled_dot_product_attention(x, memory, memory, attn_mask=None if keys is None else keys.allowed)
        return x + read if keys is None or keys.some is None else torch.where(keys.some, x + read, x)


class FeedForward(layers.FeedForward):
    """As Mask2Former's, LayerNorm(x + W2 ReLU(W1 x)) of x (..., C), with other first weights."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(channels, hidden)
        init_xavier(self)


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
        static: Keys,
        motion: Keys,
        frame_queries: Tensor,
        frame_mask: Tensor | None,
        video_queries: Tensor,
    ) -> Tensor:
        """sentence (B, 1, C), cues (B, K, C) and which of them are static and motion cues, frame_queries (B or 1, T, Nf, C) with
        frame_mask (B or 1, T), None where all frames are real, video_queries (B or 1, Nv, C) -> F_me (B, 1, C)."""
        b, (_, t, queries, _) = len(sentence), frame_queries.shape
        frames = None if frame_mask is None else Keys.of(frame_mask.repeat_interleave(queries, 1))
        size = b if torch.is_grad_enabled() else max(1, LARGEST // (t * queries))
        shared = (frame_queries.flatten(1, 2), frames, video_queries)
        parts = (slice(first, min(first + size, b)) for first in range(0, b, size))
        out = [self._one(sentence[p], cues[p], _rows(static, p), _rows(motion, p), *(_rows(s, p) for s in shared)) for p in parts]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _one(self, x: Tensor, cues: Tensor, static: Keys, motion: Keys, f: Tensor, frames: Keys | None, v: Tensor) -> Tensor:
        """Some of the expressions; f (B, T·Nf, C)."""
        if self.static is not None:
            f = self.static(f, cues, static)
        if self.motion is not None:
            v = self.motion(v, cues, motion)
        assert self.frames is not None and self.videos is not None
        out: Tensor = self.videos(self.frames(x, f, frames), v)
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
        real_words: Keys | None,
        expression: Tensor,
        video_queries: Tensor,
        position: Tensor | None,
        real: Keys | None,
    ) -> Tensor:
        """x (B, Q, C), words (B, L, C), expression (B, 1, C), video_queries (B, Nv, C), position (Q, C) -> (B, Q, C). real_words,
        real: which words and which of the Q are real; None where all are."""
        x = self.sentence(self.words(x, words, real_words), expression)
        if self.videos is not None:
            x = self.videos(x, video_queries)
        out: Tensor = self.feed(self.others(x, x, real, position))
        return out


def _once_cast(weight: Tensor) -> Tensor:
    """A weight of which parts are used as autocast has it, which would cast each of the parts."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight


def _rows(shared: Any, rows: slice) -> Any:
    """The rows of a tensor (B or 1, ...) or of `Keys`, as many as `rows` has; None as it is."""
    if shared is None:
        return None
    if isinstance(shared, Keys):
        return Keys(_rows(shared.allowed, rows), _rows(shared.some, rows))
    return shared.expand(rows.stop - rows.start, *shared.shape[1:]) if len(shared) == 1 else shared[rows]


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform first values of every matrix, as VITA's decoder and its relatives have them."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, L, D) over the mask (B, L) -> (B, D); of none zeros."""
    return x.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
