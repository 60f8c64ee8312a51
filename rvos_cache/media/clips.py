"""Clips in memory at another size: pixels are resampled with bilinear interpolation, masks take the value of the nearest pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_pixels(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels uint8 (T, H, W, 3) at `size`: antialiased bilinear, at most 2 off Pillow's BILINEAR."""
    if pixels.shape[1:3] == size:
        return pixels
    images = pixels.permute(0, 3, 1, 2)
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).permute(0, 2, 3, 1)


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks bool (..., H, W) at `size`: each pixel has the value of the one that its centre lies in."""
    for axis, length in ((-2, size[0]), (-1, size[1])):
        # Integers, because a centre may lie on the border of two pixels.
        centre = (2 * torch.arange(length) + 1) * masks.shape[axis] // (2 * length)
        masks = masks if masks.shape[axis] == length else masks.index_select(axis, centre.to(masks.device))
    return masks
