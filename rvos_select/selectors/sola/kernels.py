"""SOLA's group norm and the standardisation of its weights, each as one kernel of a GPU for each direction, in Triton; PyTorch's
operators take some sixty.

Sources of the formulas: Wu and He, "Group Normalization", 2018, Eqs. 1 to 6, with sums over the real tokens of a sample alone; Qiao et
al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019, Eq. 5.
Letters: S samples, K tokens, D channels, G groups; R rows of a weight, C columns.
"""

# Triton compiles these functions from their source: their arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Elements of a group that a program holds at once."""


@triton.jit
def _load(x, tokens, columns, real, D: tl.constexpr, d: tl.constexpr):
    """The tile of a group as float32, zeros in padding; and which of its elements are real."""
    inside = real[:, None] & (columns < d)[None, :]
    return tl.load(x + tokens[:, None] * D + columns[None, :], mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def _real(mask, tokens, K, HAS_MASK: tl.constexpr):
    """Which tokens of a tile are real."""
    real = tokens < K
    if HAS_MASK:
        real = real & (tl.load(mask + tokens, mask=real, other=0) != 0)
    return real


@triton.jit(do_not_specialize=["K"])
def _forward(
    x, mask, weight, bias, out, means, scales, K, EPS, D: tl.constexpr, d: tl.constexpr, G: tl.constexpr,
    HAS_MASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program computes one group of one sample. means, scales: (S, G), the mean and the inverse deviation."""
    s, g = tl.program_id(0), tl.program_id(1)
    x += s.to(tl.int64) * K * D + g * d
    out += s.to(tl.int64) * K * D + g * d
    mask += s * K
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    for start in range(0, K, ROWS):
        real = _real(mask, start + rows, K, HAS_MASK)
        values, inside = _load(x, start + rows, columns, real, D, d)
        total += values
        count += real.to(tl.float32)
    n = tl.maximum(tl.sum(count) * d, 1.0)
    mean = tl.sum(total) / n
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, ROWS):
        values, inside = _load(x, start + rows, columns, _real(mask, start + rows, K, HAS_MASK), D, d)
        centred = tl.where(inside, values - mean, 0.0)
        squares += centred * centred
    scale = 1.0 / tl.sqrt(tl.sum(squares) / n + EPS)
    tl.store(means + s * G + g, mean)
    tl.store(scales + s * G + g, scale)
    w = tl.load(weight + g * d + columns, mask=columns < d, other=0.0)
    b = tl.load(bias + g * d + columns, mask=columns < d, other=0.0)
    for start in range(0, K, ROWS):
        tokens = start + rows
        values, inside = _load(x, tokens, columns, _real(mask, tokens, K, HAS_MASK), D, d)
        values = tl.where(inside, (values - mean) * scale * w[None, :] + b[None, :], 0.0)
        tl.store(out + tokens[:, None] * D + columns[None, :], values, mask=(tokens < K)[:, None] & (columns < d)[None, :])


@triton.jit(do_not_specialize=["K", "S"])
def _backward(
    gradient, x, mask, weight, means, scales, dx, parts, K, S, D: tl.constexpr, d: tl.constexpr, G: tl.constexpr,
    HAS_MASK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """parts: (2, S, D), the gradients of weight and bias from each sample."""
    s, g = tl.program_id(0), tl.program_id(1)
    offset = s.to(tl.int64) * K * D + g * d
    gradient += offset
    x += offset
    dx += offset
    mask += s * K
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    mean, scale = tl.load(means + s * G + g), tl.load(scales + s * G + g)
    of_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    of_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    for start in range(0, K, ROWS):
        real = _real(mask, start + rows, K, HAS_MASK)
        values, inside = _load(x, start + rows, columns, real, D, d)
        slope, inside = _load(gradient, start + rows, columns, real, D, d)
        of_weight += slope * (values - mean) * scale
        of_bias += slope
        count += real.to(tl.float32)
    dw, db = tl.sum(of_weight, 0), tl.sum(of_bias, 0)
    tl.store(parts + s * D + g * d + columns, dw, mask=columns < d)
    tl.store(parts + (S + s) * D + g * d + columns, db, mask=columns < d)
    w = tl.load(weight + g * d + columns, mask=columns < d, other=0.0)
    n = tl.maximum(tl.sum(count) * d, 1.0)
    along, across = tl.sum(dw * w) / n, tl.sum(db * w) / n
    for start in range(0, K, ROWS):
        tokens = start + rows
        real = _real(mask, tokens, K, HAS_MASK)
        values, inside = _load(x, tokens, columns, real, D, d)
        slope, inside = _load(gradient, tokens, columns, real, D, d)
        values = scale * (slope * w[None, :] - across - (values - mean) * scale * along)
        tl.store(
            dx + tokens[:, None] * D + columns[None, :], tl.where(inside, values, 0.0),
            mask=(tokens < K)[:, None] & (columns < d)[None, :],
        )  # fmt: skip


class FusedGroupNorm(torch.autograd.Function):
    """As `MaskedGroupNorm`: x (S, K, D) of any float dtype, mask bool (S, K) or None, weight and bias float32 (D,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
        """The normalised tokens, in the dtype of x."""
        x, mask = x.contiguous(), None if mask is None else mask.contiguous()
        s, k, channels = x.shape
        out = torch.empty_like(x)
        means, scales = x.new_empty(2, s, groups, dtype=torch.float32)
        ctx.sizes = _sizes(channels, groups, mask is not None)
        _forward[s, groups](x, x if mask is None else mask, weight, bias, out, means, scales, k, epsilon, **ctx.sizes)
        ctx.save_for_backward(x, mask, weight, means, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        x, mask, weight, means, scales = ctx.saved_tensors
        s, k, channels = x.shape
        dx, parts = torch.empty_like(x), x.new_empty(2, s, channels, dtype=torch.float32)
        gradient = gradients[0].contiguous()
        _backward[s, ctx.sizes["G"]](
            gradient, x, x if mask is None else mask, weight, means, scales, dx, parts, k, s, **ctx.sizes
        )
        of_weight, of_bias = parts.sum(1)
        return dx, None, of_weight, of_bias, None, None


@triton.jit
def _standardise(weight, out, means, deviations, EPS, C: tl.constexpr, COLUMNS: tl.constexpr):
    """A program computes one row. means, deviations: (R,)."""
    row = tl.program_id(0)
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    values = tl.load(weight + row * C + columns, mask=inside, other=0.0)
    mean = tl.sum(values) / C
    centred = tl.where(inside, values - mean, 0.0)
    deviation = tl.sqrt(tl.sum(centred * centred) / max(C - 1, 1))
    tl.store(means + row, mean)
    tl.store(deviations + row, deviation)
    tl.store(out + row * C + columns, centred / (deviation + EPS), mask=inside)


@triton.jit
def _standardise_backward(gradient, weight, means, deviations, dw, EPS, C: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, COLUMNS)
    inside = columns < C
    mean, deviation = tl.load(means + row), tl.load(deviations + row)
    slope = tl.load(gradient + row * C + columns, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(weight + row * C + columns, mask=inside, other=0.0)
    centred = tl.where(inside, values - mean, 0.0)
    scale = 1.0 / (deviation + EPS)
    # The deviation of a row of equal weights has no slope: 0, as that of a norm at zero.
    bend = tl.where(deviation > 0, tl.sum(slope * centred) * scale / (tl.maximum(deviation, 1e-30) * max(C - 1, 1)), 0.0)
    values = scale * (slope - tl.sum(slope) / C - centred * bend)
    tl.store(dw + row * C + columns, values, mask=inside)


class FusedStandardisation(torch.autograd.Function):
    """Rows of a weight float32 (R, C), each minus its mean and divided by its deviation plus `epsilon`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, epsilon: float) -> Tensor:
        """The standardised rows."""
        weight = weight.contiguous()
        r, c = weight.shape
        out, (means, deviations) = torch.empty_like(weight), weight.new_empty(2, r)
        ctx.epsilon, ctx.sizes = epsilon, {"C": c, "COLUMNS": triton.next_power_of_2(c), "num_warps": 8}
        _standardise[r,](weight, out, means, deviations, epsilon, **ctx.sizes)
        ctx.save_for_backward(weight, means, deviations)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the weight."""
        weight, means, deviations = ctx.saved_tensors
        dw = torch.empty_like(weight)
        _standardise_backward[len(weight),](gradients[0].contiguous(), weight, means, deviations, dw, ctx.epsilon, **ctx.sizes)
        return dw, None


def _sizes(channels: int, groups: int, has_mask: bool) -> dict[str, Any]:
    # Of the channels alone: another number of tokens needs no other kernel.
    columns = triton.next_power_of_2(channels // groups)
    rows = max(1, TILE // columns)
    constants = {"D": channels, "d": channels // groups, "G": groups, "HAS_MASK": has_mask, "ROWS": rows, "COLUMNS": columns}
    return constants | {"num_warps": 8}
