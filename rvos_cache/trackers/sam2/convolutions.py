"""Triton kernels of the memory encoder's convolutions with few channels or one for each channel, normalised in the same pass.

What cuDNN does with them takes several passes and no matrix unit can help. Import this module only where Triton is installed; `fused`
has the same operations in plain torch. Letters: B objects, S the side of the square, H W pixels, c channels.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from rvos_cache.trackers.sam2.kernels import layer_norm

PIXELS = 128
"""Pixels in one program of the kernels with few channels."""
CELLS = 16
"""Cells of a row in one program of the kernel with a filter for each channel."""


@triton.jit
def _source(at, scale, size):
    """Bilinear interpolation without aligned corners: the two cells around a pixel and the share of the second."""
    position = tl.maximum((at.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    first = position.to(tl.int32)
    return first, tl.minimum(first + 1, size - 1), position - first.to(tl.float32)


@triton.jit
def _mask_stem(
    low, kernel, offset, weight, bias, out, height, width, side, scale_y, scale_x, factor, summand, eps,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    half = side // 2
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    base = low + tl.program_id(1).to(tl.int64) * height * width
    row, column = pixel // half, pixel % half
    live = pixel < half * half
    channel = tl.arange(0, WIDTH)
    total = tl.zeros((BLOCK, WIDTH), tl.float32) + tl.load(offset + channel).to(tl.float32)[None, :]
    for dy in tl.static_range(3):
        y = 2 * row + dy - 1
        y0, y1, below = _source(y, scale_y, height)
        for dx in tl.static_range(3):
            x = 2 * column + dx - 1
            x0, x1, right = _source(x, scale_x, width)
            inside = live & (y >= 0) & (y < side) & (x >= 0) & (x < side)
            a = tl.load(base + y0 * width + x0, mask=inside, other=0.0)
            b = tl.load(base + y0 * width + x1, mask=inside, other=0.0)
            c = tl.load(base + y1 * width + x0, mask=inside, other=0.0)
            d = tl.load(base + y1 * width + x1, mask=inside, other=0.0)
            value = (1 - below) * ((1 - right) * a + right * b) + below * ((1 - right) * c + right * d)
            if CUT:
                value = tl.where(value > 0, 1.0, 0.0)
            else:
                value = 1.0 / (1.0 + tl.exp(-value))
            # Beyond the edge is zero, after the mask was scaled.
            value = tl.where(inside, value * factor + summand, 0.0)
            total += value[:, None] * tl.load(kernel + (dy * 3 + dx) * WIDTH + channel).to(tl.float32)[None, :]
    everywhere = channel[None, :] < WIDTH
    normed = layer_norm(total, WIDTH, weight, bias, channel, everywhere, eps, True)
    to = (tl.program_id(1).to(tl.int64) * half * half + pixel)[:, None] * WIDTH + channel[None, :]
    tl.store(out + to, normed.to(out.dtype.element_ty), mask=live[:, None])


def mask_stem(low: Tensor, side: int, prompted: bool, scale: tuple[float, float], conv: Any, norm: Any, dtype: Any) -> Tensor:
    """See `fused.mask_stem`."""
    objects, _, height, width = low.shape
    channels = len(conv.weight)
    out = torch.empty(objects, side // 2, side // 2, channels, dtype=dtype, device=low.device)
    kernel = conv.weight.flatten(1).t().contiguous()
    _mask_stem[(triton.cdiv((side // 2) ** 2, PIXELS), objects)](
        low.contiguous(), kernel, conv.bias, norm.weight, norm.bias, out, height, width, side, height / side, width / side,
        float(scale[0]), float(scale[1]), norm.eps, BLOCK=PIXELS, WIDTH=channels, CUT=prompted,
    )  # fmt: skip
    return out


@triton.jit
def _few_channels(
    x, kernel, offset, weight, bias, out, height, width, eps, BLOCK: tl.constexpr, INPUTS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    half_h, half_w = height // 2, width // 2
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    one = tl.program_id(1).to(tl.int64)
    row, column = pixel // half_w, pixel % half_w
    live = pixel < half_h * half_w
    channel = tl.arange(0, WIDTH)
    total = tl.zeros((BLOCK, WIDTH), tl.float32) + tl.load(offset + channel).to(tl.float32)[None, :]
    for dy in tl.static_range(3):
        for dx in tl.static_range(3):
            y, left = 2 * row + dy - 1, 2 * column + dx - 1
            inside = live & (y >= 0) & (y < height) & (left >= 0) & (left < width)
            at = x + ((one * height + y) * width + left) * INPUTS
            for i in tl.static_range(INPUTS):
                value = tl.load(at + i, mask=inside, other=0.0).to(tl.float32)
                total += value[:, None] * tl.load(kernel + ((dy * 3 + dx) * INPUTS + i) * WIDTH + channel).to(tl.float32)[None, :]
    normed = layer_norm(total, WIDTH, weight, bias, channel, channel[None, :] < WIDTH, eps, True)
    to = (one * half_h * half_w + pixel)[:, None] * WIDTH + channel[None, :]
    tl.store(out + to, normed.to(out.dtype.element_ty), mask=live[:, None])


def few_channels(x: Tensor, conv: Any, norm: Any) -> Tensor:
    """A 3x3 convolution of stride 2 and padding 1 of (B, H, W, c), c few, its LayerNorm and GELU: (B, H / 2, W / 2, c')."""
    objects, height, width, inputs = x.shape
    channels = len(conv.weight)
    out = torch.empty(objects, height // 2, width // 2, channels, dtype=x.dtype, device=x.device)
    kernel = conv.weight.permute(2, 3, 1, 0).contiguous()
    _few_channels[(triton.cdiv(height * width // 4, PIXELS), objects)](
        x, kernel, conv.bias, norm.weight, norm.bias, out, height, width, norm.eps, BLOCK=PIXELS, INPUTS=inputs, WIDTH=channels
    )
    return out


@triton.jit
def _own_filters(
    x, kernel, offset, weight, bias, out, height, width, channels, eps,
    BLOCK: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    one = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    there = channel < channels
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    total += tl.load(offset + channel, mask=there, other=0.0).to(tl.float32)[None, :]
    for dy in range(SIZE):
        y = row + dy - SIZE // 2
        line = x + (one * height + y) * width * channels
        for dx in tl.static_range(SIZE):
            left = column + dx - SIZE // 2
            inside = ((left >= 0) & (left < width) & (y >= 0) & (y < height))[:, None] & there[None, :]
            value = tl.load(line + left[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
            tap = tl.load(kernel + (dy * SIZE + dx) * channels + channel, mask=there, other=0.0).to(tl.float32)
            total += value * tap[None, :]
    normed = layer_norm(total, channels, weight, bias, channel, there[None, :], eps, False)
    to = ((one * height + row) * width + column[:, None]) * channels + channel[None, :]
    tl.store(out + to, normed.to(out.dtype.element_ty), mask=(column < width)[:, None] & there[None, :])


def own_filters(x: Tensor, conv: Any, norm: Any) -> Tensor:
    """A convolution of (B, H, W, c) with one filter for each channel, padded to the same size, and its LayerNorm."""
    objects, height, width, channels = x.shape
    out = torch.empty_like(x)
    kernel = conv.weight.flatten(1).t().contiguous()
    _own_filters[(triton.cdiv(width, CELLS), height, objects)](
        x, kernel, conv.bias, norm.weight, norm.bias, out, height, width, channels, norm.eps,
        BLOCK=CELLS, SIZE=conv.kernel_size[0], WIDTH=triton.next_power_of_2(channels), num_warps=8,
    )  # fmt: skip
    return out
