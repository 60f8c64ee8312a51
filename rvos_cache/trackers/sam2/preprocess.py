"""Frames, points, boxes and masks in the input format of SAM 2: a square of S x S pixels, whatever the frame's aspect ratio.

Meta's two predictors resize frames differently: the video predictor with Pillow's bicubic filter (`video_pixels`; on a GPU
`resize_bicubic`, which gives the same pixels), the image predictor, which makes masks of points and boxes, with torch's antialiased
bilinear filter on floating pixels (`image_pixels`). Letters: B frames, H W their pixels, K masks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics, as in every SAM 2 checkpoint."""
BITS = 22
"""Of a weight of Pillow's filters on 8-bit pixels, which are fixed-point numbers (PRECISION_BITS of its Resample.c)."""


def video_pixels(frame: NDArray[np.uint8], side: int) -> Tensor:
    """A frame (H, W, 3) uint8 as (3, S, S) uint8, resized as for tracking.

    Source: `_load_img_as_tensor` of sam2/utils/misc.py.
    """
    resized = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def resize_bicubic(frames: Tensor, side: int) -> Tensor:
    """Frames (B, H, W, 3) uint8 as (B, 3, S, S) uint8, the pixels of `video_pixels`, computed where `frames` is.

    Pillow filters rows, rounds to 8 bits, and filters columns, in integers, so that the result does not depend on the device.
    """
    pixels = frames.permute(0, 3, 1, 2)
    for axis in (3, 2):
        pixels = _filter(pixels, axis, *_bicubic_taps(pixels.shape[axis], side, pixels.device))
    return pixels


def _filter(pixels: Tensor, axis: int, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of pixels along an axis, rounded to uint8; index: int64 (taps, S); weights: int32 (taps, S)."""
    shape = [-1 if i == axis else 1 for i in range(pixels.ndim)]
    total = weights.new_full((), 1 << (BITS - 1))
    for where, weight in zip(index, weights):
        total = total + pixels.index_select(axis, where) * weight.view(shape)
    return (total >> BITS).clamp_(0, 255).to(torch.uint8)


@cache
def _bicubic_taps(old: int, new: int, device: Any) -> tuple[Tensor, Tensor]:
    """The pixels that each of `new` pixels is a sum of, and their fixed-point weights.

    Source: `precompute_coeffs` and `bicubic_filter` of Pillow's Resample.c. The filter is stretched when an image gets smaller.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), old)
    index = first + np.arange((last - first).max())[:, None]
    x = np.abs((index - centre + 0.5) / stretch)
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(index < last, np.where(x < 1, near, np.where(x < 2, far, 0.0)), 0.0)
    fixed = weights / weights.sum(0) * (1 << BITS)
    rounded = np.trunc(fixed + np.copysign(0.5, fixed)).astype(np.int32)
    with torch.inference_mode(False):
        return torch.from_numpy(np.minimum(index, old - 1)).to(device), torch.from_numpy(rounded).to(device)


def image_pixels(frame: NDArray[np.uint8], side: int, device: Any = None) -> Tensor:
    """A frame (H, W, 3) uint8 as (3, S, S) float32 in [0, 1], resized on `device` as for masks of points and boxes.

    Source: `SAM2Transforms` of sam2/utils/transforms.py.
    """
    pixels = torch.from_numpy(frame.copy()).to(device).permute(2, 0, 1).float() / 255
    return interpolate(pixels[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, S, S), uint8 or float32 in [0, 1], minus ImageNet's mean, over its standard deviation, float32."""
    mean, std = _statistics(pixels.device)
    values = pixels if pixels.is_floating_point() else pixels.float() / 255
    return (values - mean) / std


@cache
def _statistics(device: Any) -> tuple[Tensor, ...]:
    # Once: copying them to a GPU waits for it.
    with torch.inference_mode(False):
        return tuple(torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))


def scale_points(points: NDArray[Any], size: tuple[int, int], side: int) -> NDArray[np.float32]:
    """Points or boxes (..., 2n), x before y, from pixels of the frame of `size` (H, W) to pixels of the square."""
    factors = np.array([side / size[1], side / size[0]], np.float64)
    return (np.asarray(points, np.float64).reshape(-1, 2) * factors).reshape(np.shape(points)).astype(np.float32)


def resize_mask_prompts(masks: Tensor, side: int) -> Tensor:
    """Masks (K, H, W) bool as (K, 1, S, S) float32 of 0 and 1: antialiased bilinear, 1 from one half.

    A mask too small to reach one half anywhere keeps its strongest pixels; Meta's code would leave it empty, which means that the
    object is hidden in the frame. A mask without pixels stays empty.
    """
    resized = interpolate(masks[:, None].float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    largest = resized.flatten(1).amax(1).view(-1, 1, 1, 1)
    return ((resized >= largest.clamp(max=0.5)) & (largest > 0)).float()


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (K, h, w) as float32 (K, H, W), bilinear."""
    return interpolate(logits[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
