"""Boxes of masks, and their two forms: two corners, or centre and size."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes float32 (..., 4), x0, y0, x1, y1 with exclusive ends, of bool masks (..., H, W); zeros for an empty mask."""
    out = []
    for any_pixel in (masks.any(-2), masks.any(-1)):
        size = any_pixel.shape[-1]
        first = any_pixel.int().argmax(-1)
        last = size - any_pixel.flip(-1).int().argmax(-1)
        out.append((first, last))
    (x0, x1), (y0, y1) = out
    return torch.stack([x0, y0, x1, y1], -1).float() * masks.flatten(-2).any(-1)[..., None]


def last_pixel_boxes(masks: Tensor) -> Tensor:
    """As `mask_boxes`, but x1, y1 are the indices of the last column and row, as in the data loaders of ReferFormer and ReferDINO."""
    boxes = mask_boxes(masks)
    return torch.cat([boxes[..., :2], (boxes[..., 2:] - 1).clamp(min=0)], -1)


def corners(boxes: Tensor) -> Tensor:
    """x0, y0, x1, y1 of boxes (..., 4) given by centre and size."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def centre_and_size(boxes: Tensor) -> Tensor:
    """Centre x, centre y, width, height of boxes (..., 4) given by two corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)
