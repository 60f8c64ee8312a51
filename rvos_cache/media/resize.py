"""Resizing frames as detectron2 does: its ResizeShortestEdge, and Pillow's filters on uint8 pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def shortest_edge(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """(h, w) of a frame of `size` (H, W) whose shorter side becomes `short_side` pixels, or less so that the longer side is at most
    `long_side`. Rounded as by detectron2.
    """
    scale = short_side / min(size)
    sides = [side * scale for side in size]
    if max(sides) > long_side:
        sides = [side * long_side / max(sides) for side in sides]
    h, w = (max(1, int(side + 0.5)) for side in sides)
    return h, w


def resize_frame(
    frame: NDArray[np.uint8], size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.uint8]:
    """A frame (H, W, 3) uint8 resized to `size` (h, w) by a filter of Pillow's, which antialias where they reduce."""
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size[::-1], resample))
