"""The geometry of VITA's input: the general one with Mask2Former's normalisation."""

from __future__ import annotations

from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.trackers.mask2former.geometry import DEVIATION, MEAN


def vita_geometry(size: tuple[int, int], short_side: int, long_side: int) -> FrameGeometry:
    """Of frames of `size` (H, W) in VITA's input, whose sides are as in `resize.shortest_edge`; its maps have 4 pixels per cell."""
    return FrameGeometry.of(size, short_side, long_side, mean=MEAN, deviation=DEVIATION)
