"""Masks of many tracks, written and read frame by frame, in little memory.

Letters: N tracks, h w pixels at working resolution.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_cache.trackers.spool import ArraySpool

ENCODED_PIXELS = 1 << 22
"""Pixels of masks that are encoded in one call."""
HEADER = 5
"""int32 numbers per mask: its track and the window's y0, y1, x0, x1."""


@dataclass(frozen=True, eq=False)
class FrameMask:
    """The mask of one track in one frame: bool (y1 - y0, x1 - x0) in `window` (y0, y1, x0, x1), no pixels outside."""

    track: int
    window: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


class MaskFrames:
    """Masks of N tracks, kept as compressed bits in `arrays`, one entry per frame and direction of propagation."""

    def __init__(self, arrays: ArraySpool, count: int, size: tuple[int, int]) -> None:
        self.arrays, self.count, self.size = arrays, count, size

    def write(self, t: int, direction: int, masks: Sequence[FrameMask]) -> None:
        """Add masks of frame t. direction: -1, 0 or 1; each may be written once per frame."""
        if masks:
            header = np.array([(len(masks), 0, 0, 0, 0), *((m.track, *m.window) for m in masks)], np.int32)
            bits = np.packbits(np.concatenate([m.mask.ravel() for m in masks]))
            raw = zlib.compress(header.tobytes() + bits.tobytes(), 1)
            self.arrays["masks", t, direction] = np.frombuffer(raw, np.uint8)

    def frame(self, t: int) -> NDArray[np.bool_]:
        """The masks of frame t, bool (N, h, w); a track without a mask there is empty."""
        out = np.zeros((self.count, *self.size), bool)
        for direction in (-1, 0, 1):
            if ("masks", t, direction) in self.arrays:
                raw = zlib.decompress(self.arrays["masks", t, direction].data)
                count = int(np.frombuffer(raw, np.int32, 1)[0])
                header = np.frombuffer(raw, np.int32, (count + 1) * HEADER).reshape(-1, HEADER)[1:]
                pixels = np.unpackbits(np.frombuffer(raw, np.uint8, offset=(count + 1) * HEADER * 4)).view(bool)
                start = 0
                for track, y0, y1, x0, x1 in header.tolist():
                    area = (y1 - y0) * (x1 - x0)
                    out[track, y0:y1, x0:x1] = pixels[start : start + area].reshape(y1 - y0, x1 - x0)
                    start += area
        return out
