"""The geometry of VITA's input: the general one with VITA's normalisation."""

from __future__ import annotations

from rvos_cache.media.geometry import FrameGeometry

MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
"""MEAN and DEVIATION of red, green and blue from 0 to 255, as in VITA's configurations (PIXEL_MEAN, PIXEL_STD)."""


def vita_geometry(size: tuple[int, int], short_side: int, long_side: int) -> FrameGeometry:
    """Of frames of `size` (H, W) in VITA's input, whose sides are as in `resize.shortest_edge`; its maps have 4 pixels per cell."""
    return FrameGeometry.of(size, short_side, long_side, mean=MEAN, deviation=DEVIATION)
