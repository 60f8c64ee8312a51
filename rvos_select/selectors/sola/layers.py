"""SOLA's layers with masks: padding of tracks, frames and words changes nothing that is real.

Shapes: M tracks of any expression, K tokens of one norm's sample, D channels. True = real in every mask, and a mask is
None where all is real.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.system.gpu_kernels import has_triton

GROUPS = 8
EPSILON = 1e-5
SMALL = 1 << 18
"""Weights of a convolution up to which a product of its windows is faster on a CPU too (full SOLA's would be slower)."""


class WhitenedProjection(nn.Module):
    """Words (B, L, C) -> (B, L, D): whitened, then a linear layer and LayerNorm.

    Words of a pretrained encoder differ much in a few directions and little in those that tell "left" from "right". Whitening
    gives the training words the same variance in every direction; those with less than SHARE of the mean variance stay smaller.

    Source: Su et al., "Whitening Sentence Representations for Better Semantics and Faster Retrieval", 2021, section 3.
    """

    SHARE = 0.02
    mean: Tensor
    matrix: Tensor

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(words))
        self.register_buffer("matrix", torch.eye(words))
        self.linear, self.norm = nn.Linear(words, channels), nn.LayerNorm(channels)

    def fit(self, words: Iterable[Tensor]) -> None:
        """Set the whitening from words, float (L, C) each; until then there is none."""
        size = len(self.mean)
        count, total, products = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for each in words:
            x = each.double()
            count, total, products = count + len(x), total + x.sum(0), products + x.T @ x
        mean = total / count
        variances, directions = torch.linalg.eigh(products / count - mean[:, None] * mean)
        variances = variances.clamp(min=0) + self.SHARE * variances.mean()
        self.mean.copy_(mean)
        self.matrix.copy_(directions / variances.sqrt() @ directions.T)

    def forward(self, words: Tensor) -> Tensor:
        projected: Tensor = self.norm(self.linear((words - self.mean) @ self.matrix))
        return projected


class MaskedGroupNorm(nn.Module):
    """GroupNorm over channels whose statistics run over a sample's real tokens: (S, K, D), mask (S, K) -> (S, K, D).

    Padded tokens come out as zeros. Parameters are those of `nn.GroupNorm(8, D)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        kernels = fused_kernels(x)
        if kernels is not None:
            normalised: Tensor = kernels.FusedGroupNorm.apply(x, mask, self.weight, self.bias, GROUPS, EPSILON)
            return normalised
        s, k, d = x.shape
        grouped = x.float().reshape(s, k, GROUPS, d // GROUPS)
        if mask is None:
            # The same numbers by the fused kernel of LayerNorm: a group's channels and tokens as one row.
            rows = grouped.transpose(1, 2).reshape(s, GROUPS, -1)
            normal = F.layer_norm(rows, rows.shape[2:], eps=EPSILON).reshape(s, GROUPS, k, -1).transpose(1, 2)
            return torch.addcmul(self.bias, normal.reshape(s, k, d), self.weight).to(x.dtype)
        real = mask[:, :, None, None]
        grouped = grouped.masked_fill(~real, 0.0)
        count = (mask.sum(1) * (d // GROUPS)).clamp(min=1)[:, None, None, None]
        mean = grouped.sum((1, 3), keepdim=True) / count
        variance = (grouped - mean).masked_fill(~real, 0.0).square().sum((1, 3), keepdim=True) / count
        normal = (grouped - mean) * torch.rsqrt(variance + EPSILON)
        out = torch.addcmul(self.bias, normal.reshape(s, k, d), self.weight)
        return out.masked_fill(~mask[:, :, None], 0.0).to(x.dtype)


def fused_kernels(x: Tensor) -> Any:
    """The module of kernels that compute on `x`: on a GPU where Triton compiles; else None."""
    if not x.is_cuda or not has_triton():
        return None
    from rvos_select.selectors.sola import kernels

    return kernels


def standardised(weight: Tensor) -> Tensor:
    """Rows (R, C), each minus its mean and divided by its deviation plus EPSILON."""
    kernels = fused_kernels(weight)
    if kernels is not None:
        rows: Tensor = kernels.FusedStandardisation.apply(weight, EPSILON)
        return rows
    # As torch.std_mean over two dimensions, in a third of its time.
    rows = weight - weight.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(rows, dim=1, keepdim=True) / max(rows.shape[1] - 1, 1) ** 0.5
    return rows / (deviation + EPSILON)


class StandardConv1d(nn.Conv1d):
    """A 1-D convolution along time with weight standardisation: (M, T, D) -> (M, T′, D′)."""

    def forward(self, x: Tensor) -> Tensor:
        rows = standardised(self.weight.flatten(1))
        taps, stride, margin = self.kernel_size[0], self.stride[0], int(self.padding[0])
        if taps == 1 or x.is_cuda or rows.numel() <= SMALL:
            if torch.is_autocast_enabled(x.device.type):
                x = x.to(torch.get_autocast_dtype(x.device.type))  # before the windows repeat it
            # On a GPU a convolution would copy tokens and weights to another layout and back.
            return F.linear(F.pad(x, (0, 0, margin, margin)).unfold(1, taps, stride).flatten(2), rows, self.bias)
        # bfloat16 on a CPU: oneDNN leaves parts of this weight's gradient unset when few frames are left
        with torch.autocast("cpu", enabled=False):
            y = F.conv1d(x.float().transpose(1, 2), rows.view_as(self.weight), self.bias, stride, margin)
        return y.transpose(1, 2)


def shorter(lengths: Tensor, stride: int) -> Tensor:
    """Real frames after a convolution of this stride whose padding keeps the length: ceil(T / stride)."""
    return torch.div(lengths + stride - 1, stride, rounding_mode="floor")


class MotionEncoder(nn.Sequential):
    """SOLA's short-term motion encoder: (M, T, C), lengths (M,) or None -> (M, T′, D), T′ = T halved three times, up.

    A Sequential so that its children have the released checkpoint's names: convolution, norm, activation, dropout.
    """

    def __init__(self, channels: int, width: int, out: int, dropout: float) -> None:
        shape = [
            (channels, width, 3, 2),
            (width, width, 3, 2),
            (width, width, 3, 2),
            (width, out, 3, 1),
            (out, out, 3, 1),
        ]
        blocks: list[nn.Module] = []
        for before, after, kernel, stride in shape:
            blocks += [
                StandardConv1d(before, after, kernel, stride, padding=1),
                MaskedGroupNorm(after),
                nn.LeakyReLU(0.01),
                nn.Dropout(dropout),
            ]
        super().__init__(*blocks, StandardConv1d(out, out, 1))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None:
            x = x.masked_fill(~within(lengths, x.shape[1])[..., None], 0.0)
        for layer in self:
            if isinstance(layer, StandardConv1d):
                x = layer(x)
                if lengths is not None:
                    lengths = shorter(lengths, layer.stride[0])
            elif isinstance(layer, MaskedGroupNorm):
                x = layer(x, None if lengths is None else within(lengths, x.shape[1]))
            else:
                x = layer(x)  # both keep zeros zero
        return x if lengths is None else x.masked_fill(~within(lengths, x.shape[1])[..., None], 0.0)


def within(lengths: Tensor, size: int) -> Tensor:
    """(M,) lengths -> bool (M, size), True before the length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class Attention(nn.Module):
    """Multi-head attention with the released checkpoint's projection names."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Projected q (S, K, D), k and v (S, K′, D), key mask (S, K′) -> (S, K, D); no NaN without keys."""
        if mask is not None:
            # softmax over nothing is NaN: such a sample attends to its padding, and its own tokens are padding too
            mask = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (q, k, v))
        rate = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class AlignmentLayer(nn.Module):
    """Attention over tracks, over time, and to the memory, each with a residual and a norm.

    attention: which of the first two it has: "both", "objects" (over tracks) or "motion" (over time).
    """

    def __init__(self, channels: int, heads: int, dropout: float, attention: str = "both") -> None:
        super().__init__()
        self.obj_attn = Attention(channels, heads, dropout) if attention != "motion" else None
        self.motion_attn = Attention(channels, heads, dropout) if attention != "objects" else None
        self.object2lang_attn = Attention(channels, heads, dropout)
        used = (self.obj_attn, self.motion_attn, self.object2lang_attn)
        # The released names count the norms, so one that is not used keeps its place.
        self.norm = nn.ModuleList(nn.Identity() if attention is None else MaskedGroupNorm(channels) for attention in used)

    def attend_tracks_and_time(self, x: Tensor, code: Tensor, tracks: Tensor | None, frames: Tensor | None) -> Tensor:
        """The two attentions that read no text: x (B, N, T′, D), code (T′, D), masks (B, N) and (B, T′) -> x."""
        both = real_tokens(x, tracks, frames)
        if self.obj_attn is not None:
            x = self._attend_tracks(self.obj_attn, x, both)
        return x if self.motion_attn is None else self._attend_time(self.motion_attn, x, code, both)

    def _attend_tracks(self, attention: Attention, x: Tensor, real: Tensor | None) -> Tensor:
        b, n, t, d = x.shape
        y = x.transpose(1, 2).reshape(b * t, n, d)
        mask = None if real is None else real.transpose(1, 2).reshape(b * t, n)
        y = self.norm[0](y + attention.attend(attention.q_proj(y), attention.k_proj(y), attention.v_proj(y), mask), mask)
        return y.reshape(b, t, n, d).transpose(1, 2)

    def _attend_time(self, attention: Attention, x: Tensor, code: Tensor, real: Tensor | None) -> Tensor:
        b, n, t, d = x.shape
        y = x.reshape(b * n, t, d)
        mask = None if real is None else real.reshape(b * n, t)
        coded = y + code
        moved: Tensor = self.norm[1](
            y + attention.attend(attention.q_proj(coded), attention.k_proj(coded), attention.v_proj(y), mask), mask
        )
        return moved.reshape(b, n, t, d)

    def attend_memory(
        self,
        x: Tensor,
        rows: Tensor | None,
        words: Tensor,
        negatives: Tensor | None,
        word_mask: Tensor | None,
        tracks: Tensor | None,
        frames: Tensor | None,
    ) -> Tensor:
        """Attention to the memory: x (U, N, T′, D) whose row `rows[b]` is expression b's -> (B, N, T′, D). rows None: U is B,
        or 1 and every expression's.

        words (B, L, D) and negatives (Q, D) or None; word_mask (B, L); tracks (B, N), frames (B, T′).
        """
        _, n, t, d = x.shape
        attention = self.object2lang_attn
        flat = x.reshape(-1, n * t, d)
        q = attention.q_proj(flat)
        k, v, b = attention.k_proj(words), attention.v_proj(words), len(words)
        q, flat = (y.expand(b, -1, -1) if rows is None else y[rows] for y in (q, flat))
        if negatives is not None:
            # the negatives are the same for every expression: projected once
            k = torch.cat([k, attention.k_proj(negatives).expand(b, -1, -1)], 1)
            v = torch.cat([v, attention.v_proj(negatives).expand(b, -1, -1)], 1)
            word_mask = None if word_mask is None else F.pad(word_mask, (0, len(negatives)), value=True)
        both = real_tokens(flat.reshape(b, n, t, d), tracks, frames)
        mask = None if both is None else both.reshape(b, n * t)
        y: Tensor = self.norm[2](flat + attention.attend(q, k, v, word_mask), mask)
        return y.reshape(b, n, t, d)


def real_tokens(x: Tensor, tracks: Tensor | None, frames: Tensor | None) -> Tensor | None:
    """x (B, N, T′, D), tracks (B, N), frames (B or 1, T′) -> bool (B, N, T′), or None where all is real."""
    if tracks is None and frames is None:
        return None
    real = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
    if tracks is not None:
        real = real & tracks[:, :, None]
    return real if frames is None else real & frames[:, None]


def temporal_code(gaussian: Tensor, length: int) -> Tensor:
    """Random Fourier features of t/100 for t = 0 … length−1: gaussian (1, D/2) -> (length, D), sines then cosines."""
    at = torch.arange(length, device=gaussian.device, dtype=torch.float32)[:, None] / 100
    angle = 2 * torch.pi * (at @ gaussian.float())
    return torch.cat([angle.sin(), angle.cos()], -1)


def masked_mean(x: Tensor, mask: Tensor | None, extra: Sequence[Tensor] = ()) -> Tensor:
    """Mean of x (B, L, D) over real positions and over the rows of every `extra` (Q, D) -> (B, D); none -> zeros."""
    if mask is None:
        total, count = x.sum(1), torch.full((len(x), 1), x.shape[1], device=x.device)
    else:
        total, count = x.masked_fill(~mask[..., None], 0.0).sum(1), mask.sum(1, keepdim=True)
    for rows in extra:
        total, count = total + rows.sum(0), count + len(rows)
    return total / count.clamp(min=1)
