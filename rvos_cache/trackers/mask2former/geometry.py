"""The input of Mask2Former: its normalisation, and frames stretched to a square."""

from __future__ import annotations

from rvos_cache.media.geometry import FrameGeometry

MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
"""MEAN and DEVIATION of red, green and blue from 0 to 255, as in detectron2's configurations (PIXEL_MEAN, PIXEL_STD)."""


def square_geometry(size: tuple[int, int], side: int) -> FrameGeometry:
    """Of frames of `size` (H, W) that are resized to `side` pixels both ways, whatever their aspect ratio."""
    return FrameGeometry.stretched(size, (side, side), mean=MEAN, deviation=DEVIATION)
