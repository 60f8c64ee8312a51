"""A Triton kernel on masks at the size of the frame, which is several times that of their logits.

Import this module only where Triton is installed. Letters: K masks, h w pixels of their logits, H W pixels of the frame.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

WIDE, FEW = 128, 16
"""Columns that a program reads at once, and its lines."""


@triton.jit
def _measure(
    low, counts, box, height, width, lines, columns, scale_y, scale_x, offset, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    mask = tl.program_id(1).to(tl.int64)
    base = low + mask * height * width
    y = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y_at = tl.maximum((y.to(tl.float32) + 0.5) * scale_y - 0.5, 0.0)
    y0 = y_at.to(tl.int32)
    y1, below = tl.minimum(y0 + 1, height - 1), (y_at - y0.to(tl.float32))[:, None]
    inner = tl.zeros((BLOCK,), tl.int32)
    outer = tl.zeros((BLOCK,), tl.int32)
    left = tl.zeros((BLOCK,), tl.int32) + columns
    right = tl.zeros((BLOCK,), tl.int32) - 1
    for start in range(0, columns, WIDTH):
        x = start + tl.arange(0, WIDTH)
        x_at = tl.maximum((x.to(tl.float32) + 0.5) * scale_x - 0.5, 0.0)
        x0 = x_at.to(tl.int32)
        x1, beside = tl.minimum(x0 + 1, width - 1), (x_at - x0.to(tl.float32))[None, :]
        inside = (y < lines)[:, None] & (x < columns)[None, :]
        a = tl.load(base + y0[:, None] * width + x0[None, :], mask=inside, other=0.0)
        b = tl.load(base + y0[:, None] * width + x1[None, :], mask=inside, other=0.0)
        c = tl.load(base + y1[:, None] * width + x0[None, :], mask=inside, other=0.0)
        d = tl.load(base + y1[:, None] * width + x1[None, :], mask=inside, other=0.0)
        value = (1 - below) * ((1 - beside) * a + beside * b) + below * ((1 - beside) * c + beside * d)
        inner += tl.sum((inside & (value > offset)).to(tl.int32), 1)
        outer += tl.sum((inside & (value > -offset)).to(tl.int32), 1)
        there = inside & (value > 0)
        left = tl.minimum(left, tl.min(tl.where(there, x[None, :], columns), 1))
        right = tl.maximum(right, tl.max(tl.where(there, x[None, :], -1), 1))
    tl.atomic_add(counts + 2 * mask, tl.sum(inner, 0))
    tl.atomic_add(counts + 2 * mask + 1, tl.sum(outer, 0))
    some = right >= 0
    tl.atomic_min(box + 4 * mask, tl.min(left, 0))
    tl.atomic_min(box + 4 * mask + 1, tl.min(tl.where(some, y, lines), 0))
    tl.atomic_max(box + 4 * mask + 2, tl.max(right, 0))
    tl.atomic_max(box + 4 * mask + 3, tl.max(tl.where(some, y, -1), 0))


def measure(low: Tensor, size: tuple[int, int], offset: float) -> tuple[Tensor, Tensor]:
    """Of masks whose logits (K, h, w) float32 are enlarged to `size` (H, W), without storing them: int32 (K, 2), the pixels above
    `offset` and those above -offset, and int32 (K, 4), the first column and line above 0 and the last ones, -1 where there is none."""
    count, height, width = low.shape
    lines, columns = size
    counts = torch.zeros(count, 2, dtype=torch.int32, device=low.device)
    box = torch.tensor([columns, lines, -1, -1], dtype=torch.int32, device=low.device).repeat(count, 1)
    _measure[(triton.cdiv(lines, FEW), count)](
        low.contiguous(), counts, box, height, width, lines, columns, height / lines, width / columns, float(offset),
        BLOCK=FEW, WIDTH=WIDE,
    )  # fmt: skip
    return counts, box
