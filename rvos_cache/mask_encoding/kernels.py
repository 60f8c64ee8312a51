"""Triton kernels that find where masks change. Import this module only where Triton is installed.

Letters: K masks, H W pixels.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

COLUMNS, LINES = 32, 64
"""Columns of a program, and the lines that it reads at once."""


@triton.jit
def _flips(logits, line, column, height, width):
    """Whether pixels differ from the pixel before them, column by column; the pixel before the first is background."""
    inside = (line < height)[:, None] & (column < width)[None, :]
    value = tl.load(logits + line[:, None] * width + column[None, :], mask=inside, other=0)
    # Above the first line is the last line of the column to the left.
    first = (line == 0)[:, None]
    before_line = tl.where(first, height - 1, line[:, None] - 1)
    before_column = tl.where(first, column[None, :] - 1, column[None, :])
    before = tl.load(logits + before_line * width + before_column, mask=inside & (before_column >= 0), other=0)
    return inside & ((value > 0) != (before > 0))


@triton.jit
def _count_flips(logits, counts, height, width, LINES_: tl.constexpr, COLUMNS_: tl.constexpr):
    mask = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS_ + tl.arange(0, COLUMNS_)
    base = logits + mask.to(tl.int64) * height * width
    total = tl.zeros((COLUMNS_,), tl.int32)
    for start in range(0, height, LINES_):
        flips = _flips(base, start + tl.arange(0, LINES_), column, height, width)
        total += tl.sum(flips.to(tl.int32), 0)
    tl.store(counts + mask * width + column, total, mask=column < width)


@triton.jit
def _write_flips(
    logits, stops, counts, positions, capacity, height, width, LINES_: tl.constexpr, COLUMNS_: tl.constexpr
):  # fmt: skip
    mask = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS_ + tl.arange(0, COLUMNS_)
    base = logits + mask.to(tl.int64) * height * width
    at = mask * width + column
    rank = tl.load(stops + at, mask=column < width, other=0) - tl.load(counts + at, mask=column < width, other=0)
    for start in range(0, height, LINES_):
        line = start + tl.arange(0, LINES_)
        flips = _flips(base, line, column, height, width).to(tl.int32)
        to = rank[None, :] + tl.cumsum(flips, 0) - 1
        position = column[None, :] * height + line[:, None]
        tl.store(positions + to, position, mask=(flips > 0) & (to < capacity))
        rank += tl.sum(flips, 0)


def flips(logits: Tensor, stops: Tensor, positions: Tensor) -> None:
    """Where masks (K, H, W) change along their columns: of bool, or of logits of any dtype, which are in the mask above 0.

    stops: int32 (K,), receives the end of each mask's part of `positions`; positions: int32, receives them as pixels counted column
    by column, without those beyond its length.
    """
    count, height, width = logits.shape
    logits = logits.view(torch.uint8) if logits.dtype == torch.bool else logits
    counts = torch.empty(count, width, dtype=torch.int32, device=logits.device)
    grid, block = (triton.cdiv(width, COLUMNS), count), {"LINES_": LINES, "COLUMNS_": COLUMNS}
    _count_flips[grid](logits, counts, height, width, **block)
    ends = counts.flatten().cumsum(0, dtype=torch.int32)
    _write_flips[grid](logits, ends, counts, positions, len(positions), height, width, **block)
    stops.copy_(ends.view(count, width)[:, -1])
