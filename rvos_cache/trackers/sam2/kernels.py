"""Triton kernels of SAM 2's tracking on a GPU, each in place of several passes over the same maps.

At 1024 pixels and 16 objects one pass over a map of 256 channels moves 34 MB, so the time of everything but matrix products is the
number of passes. Import this module only where Triton is installed; `fused` has the same operations in plain torch, which define them.
Letters: B objects, n heads, L cells of a map, c channels of a head, S slots, K pointer tokens.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

ROWS = 16
"""Cells in one program of the kernels on maps."""


@triton.jit
def layer_norm(x, width, weight, bias, column, inside, eps, GELU: tl.constexpr):
    """LayerNorm of rows (n, WIDTH) float32 over their first `width` columns, and its GELU."""
    centred = tl.where(inside, x - (tl.sum(tl.where(inside, x, 0.0), 1) / width)[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    gain = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    out = centred * scale[:, None] * gain[None, :] + shift[None, :]
    if GELU:
        out = 0.5 * out * (1.0 + tl.erf(out * 0.7071067811865476))
    return out


@triton.jit
def _add_norm(
    x, branch, weight, bias, total, normed, rows, x_rows, width, eps,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, ADD: tl.constexpr, KEEP: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    value = tl.load(x + (row % x_rows)[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    if KEEP:
        tl.store(total + at, value.to(total.dtype.element_ty), mask=inside)
    out = layer_norm(value, width, weight, bias, column, inside, eps, GELU)
    tl.store(normed + at, out.to(normed.dtype.element_ty), mask=inside)


def add_norm(x: Tensor, branch: Tensor | None, norm: Any, dtype: Any, keep: bool, gelu: bool) -> tuple[Tensor, Tensor]:
    """See `fused.add_norm`."""
    shape = x.shape if branch is None else branch.shape
    width = shape[-1]
    rows, x_rows = shape.numel() // width, x.numel() // width
    total = torch.empty(shape, dtype=x.dtype, device=x.device) if keep and branch is not None else x
    normed = torch.empty(shape, dtype=dtype, device=x.device)
    padded = triton.next_power_of_2(width)
    block = max(1, 4096 // padded)
    _add_norm[(triton.cdiv(rows, block),)](
        x, x if branch is None else branch, norm.weight, norm.bias, total, normed, rows, x_rows, width, norm.eps,
        BLOCK=block, WIDTH=padded, ADD=branch is not None, KEEP=keep and branch is not None, GELU=gelu,
    )  # fmt: skip
    return total, normed


@triton.jit
def _turned(value, cos, sin, cell, length, ROWS_: tl.constexpr, WIDTH: tl.constexpr):
    """Rows (ROWS_, WIDTH) float32 with their pairs of channels rotated by the angles of `cell`."""
    pair = tl.arange(0, WIDTH // 2)
    at = cell[:, None] * (WIDTH // 2) + pair[None, :]
    inside = (cell < length)[:, None]
    c = tl.load(cos + at, mask=inside, other=0.0)
    s = tl.load(sin + at, mask=inside, other=0.0)
    even, odd = tl.split(tl.reshape(value, (ROWS_, WIDTH // 2, 2)))
    return tl.interleave(even * c - odd * s, even * s + odd * c)


@triton.jit
def _rotate(
    x, cos, sin, out, length, heads, x_batch, x_cell, x_head,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = (cell < length)[:, None]
    start = (index // heads) * x_batch + (index % heads) * x_head
    value = tl.load(x + start + cell[:, None] * x_cell + column[None, :], mask=inside, other=0.0).to(tl.float32)
    turned = _turned(value, cos, sin, cell, length, BLOCK, WIDTH)
    to = (index * length + cell[:, None]) * WIDTH + column[None, :]
    tl.store(out + to, turned.to(out.dtype.element_ty), mask=inside)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `fused.rotate`."""
    count, length, heads, width = x.shape
    out = torch.empty(count, heads, length, width, dtype=x.dtype, device=x.device)
    _rotate[(triton.cdiv(length, ROWS), count * heads)](
        x, cos, sin, out, length, heads, x.stride(0), x.stride(1), x.stride(2), BLOCK=ROWS, WIDTH=width
    )
    return out


@triton.jit
def _store_map(
    projected, cos, sin, slot, keys, values, length, heads, layers, slots, objects,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    layer = tl.program_id(1)
    index = tl.program_id(2).to(tl.int64)
    one, head = index // heads, index % heads
    column = tl.arange(0, WIDTH)
    inside = (cell < length)[:, None]
    # projected is (B, L, layers, 2, n, c), the slots are (layers, B, n, S, L, c).
    start = (((one * length + cell[:, None]) * layers + layer) * 2 * heads + head) * WIDTH + column[None, :]
    key = tl.load(projected + start, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(projected + start + heads * WIDTH, mask=inside, other=0.0)
    turned = _turned(key, cos, sin, cell, length, BLOCK, WIDTH)
    place = (layer * objects * heads + index) * slots + tl.load(slot)
    to = (place * length + cell[:, None]) * WIDTH + column[None, :]
    tl.store(keys + to, turned.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + to, value, mask=inside)


def store_map(projected: Tensor, cos: Tensor, sin: Tensor, slot: Tensor, keys: Tensor, values: Tensor) -> None:
    """See `fused.store_map`."""
    objects, length, layers, _, heads, width = projected.shape
    _store_map[(triton.cdiv(length, ROWS), layers, objects * heads)](
        projected, cos, sin, slot, keys, values, length, heads, layers, keys.shape[3], objects, BLOCK=ROWS, WIDTH=width
    )


@triton.jit
def _shift_keys(
    keys, positions, distances, out, length, heads, slots, count, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.program_id(1)
    index = tl.program_id(2).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = (cell < length)[:, None]
    distance = tl.load(distances + slot)
    within = cell[:, None] * WIDTH + column[None, :]
    key = tl.load(keys + (index * slots + slot) * length * WIDTH + within, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(positions + (distance * heads + index % heads) * length * WIDTH + within, mask=inside, other=0.0)
    value = key + shift.to(tl.float32)
    tl.store(out + (index * count + slot) * length * WIDTH + within, value.to(out.dtype.element_ty), mask=inside)


def shift_keys(keys: Tensor, positions: Tensor, distances: Tensor, count: int) -> Tensor:
    """See `fused.shift_keys`."""
    objects, heads, slots, length, width = keys.shape
    out = torch.empty(objects, heads, count * length, width, dtype=keys.dtype, device=keys.device)
    _shift_keys[(triton.cdiv(length, ROWS), count, objects * heads)](
        keys, positions, distances, out, length, heads, slots, count, BLOCK=ROWS, WIDTH=width
    )
    return out


@triton.jit
def _attend_more(
    query, attended, sums, keys, values, bias, out, length, heads, tokens, scale,
    q_batch, q_head, q_cell, a_batch, a_head, a_cell, k_batch, k_head, k_token, v_batch, v_head, v_token,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.program_id(1).to(tl.int64)
    one, head = index // heads, index % heads
    column, token = tl.arange(0, WIDTH), tl.arange(0, TOKENS)
    inside, there = (cell < length)[:, None], (token < tokens)[:, None]
    q = tl.load(query + one * q_batch + head * q_head + cell[:, None] * q_cell + column[None, :], mask=inside, other=0.0)
    k = tl.load(keys + one * k_batch + head * k_head + token[:, None] * k_token + column[None, :], mask=there, other=0.0)
    v = tl.load(values + one * v_batch + head * v_head + token[:, None] * v_token + column[None, :], mask=there, other=0.0)
    logits = tl.dot(q, tl.trans(k)).to(tl.float32) * scale
    logits += tl.load(bias + token, mask=token < tokens, other=float("-inf"))[None, :]
    sum_ = tl.load(sums + index * length + cell, mask=cell < length, other=0.0)
    largest = tl.maximum(sum_, tl.max(logits, 1))
    weights = tl.exp(logits - largest[:, None])
    before = tl.exp(sum_ - largest)
    total = before + tl.sum(weights, 1)
    a = tl.load(attended + one * a_batch + head * a_head + cell[:, None] * a_cell + column[None, :], mask=inside, other=0.0)
    merged = a.to(tl.float32) * (before / total)[:, None]
    merged += tl.dot((weights / total[:, None]).to(v.dtype), v).to(tl.float32)
    to = ((one * length + cell[:, None]) * heads + head) * WIDTH + column[None, :]
    tl.store(out + to, merged.to(out.dtype.element_ty), mask=inside)


def attend_more(query: Tensor, attended: Tensor, sums: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """See `fused.attend_more`."""
    objects, heads, length, width = attended.shape
    tokens = keys.shape[2]
    out = torch.empty(objects, length, heads * width, dtype=attended.dtype, device=attended.device)
    block = 64
    _attend_more[(triton.cdiv(length, block), objects * heads)](
        query, attended, sums, keys, values, bias, out, length, heads, tokens, width**-0.5,
        *query.stride()[:3], *attended.stride()[:3], *keys.stride()[:3], *values.stride()[:3],
        BLOCK=block, WIDTH=width, TOKENS=max(16, triton.next_power_of_2(tokens)), num_warps=8,
    )  # fmt: skip
    return out


@triton.jit
def _mask_logits(
    enlarged, finest, kernels, out, length, masks, width, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    one = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = (cell < length)[:, None] & (column < width)[None, :]
    within = cell[:, None] * width + column[None, :]
    value = tl.load(enlarged + one * length * width + within, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(finest + within, mask=inside, other=0.0).to(tl.float32)
    value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    mask = 0
    while mask < masks:
        kernel = tl.load(kernels + (one * masks + mask) * width + column, mask=column < width, other=0.0).to(tl.float32)
        tl.store(out + (one * masks + mask) * length + cell, tl.sum(value * kernel[None, :], 1), mask=cell < length)
        mask += 1


def mask_logits(enlarged: Tensor, finest: Tensor, kernels: Tensor) -> Tensor:
    """See `fused.mask_logits`."""
    objects, length, width = enlarged.shape
    masks, kernels = kernels.shape[1], kernels.contiguous()
    out = torch.empty(objects, masks, length, dtype=torch.float32, device=enlarged.device)
    _mask_logits[(triton.cdiv(length, 128), objects)](
        enlarged, finest, kernels, out, length, masks, width, BLOCK=128, WIDTH=triton.next_power_of_2(width)
    )
    return out
