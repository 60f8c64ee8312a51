"""Frames, points, boxes and masks in the input format of SAM 2: a square of S x S pixels, whatever the frame's aspect ratio.

Meta's two predictors resize frames differently, so there are two functions: the video predictor with Pillow's bicubic filter
(`video_pixels`), the image predictor, which makes masks of points and boxes, with torch's antialiased bilinear filter on floating
pixels (`image_pixels`). Letters: H W pixels of the frame, K masks.
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


def video_pixels(frame: NDArray[np.uint8], side: int) -> Tensor:
    """A frame (H, W, 3) uint8 as (3, S, S) uint8, resized as for tracking.

    Source: `_load_img_as_tensor` of sam2/utils/misc.py.
    """
    resized = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


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
