"""Frames, points, boxes and masks as SAM 2 takes them: a square of S x S pixels, whatever the frame's shape.

transformers' processors of SAM 2 need torchvision; these are equal to them. Letters: H W pixels of the frame, K masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as in every SAM 2 checkpoint."""


def resized(frame: NDArray[np.uint8], side: int) -> Tensor:
    """A frame (H, W, 3) uint8 as (3, S, S) uint8. Resized before it is made floating, as the library does."""
    pixels = torch.from_numpy(frame.transpose(2, 0, 1).copy())
    return interpolate(pixels[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def normalised(pixels: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 as float32 of about unit spread."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def scaled(points: NDArray[Any], size: tuple[int, int], side: int) -> NDArray[np.float32]:
    """Points or boxes (..., 2n), x before y, from pixels of the frame (H, W) to pixels of the square."""
    factors = np.array([side / size[1], side / size[0]], np.float64)
    return (np.asarray(points, np.float64).reshape(-1, 2) * factors).reshape(np.shape(points)).astype(np.float32)


def mask_prompts(masks: Tensor, side: int) -> Tensor:
    """Masks (K, H, W) bool, none of them empty, as (K, 1, S, S) float32 of 0 and 1.

    Of a mask so small that the cut at one half would leave nothing, the strongest pixels stay: SAM 2 takes an empty prompt for
    an object that is hidden there, and follows it all the same.
    """
    shrunk = interpolate(masks[:, None].float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    most = shrunk.flatten(1).amax(1).view(-1, 1, 1, 1)
    return (shrunk >= most.clamp(max=0.5)).float()


def at_frame(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits (K, h, w) as float32 (K, H, W)."""
    return interpolate(logits[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
