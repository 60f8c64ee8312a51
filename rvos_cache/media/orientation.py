"""The orientation in which viewers show a picture and players a film, as a transposition and two mirrorings."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.02
"""Largest ratio of two entries of a display matrix of which the smaller counts as 0: about one degree, as in FFmpeg."""


@dataclass(frozen=True)
class Orientation:
    """How stored pixels become those that are shown: rows and columns are exchanged first, then the sides are mirrored.

    transpose: row y becomes column y; left_right: columns in reverse order; up_down: rows in reverse order.
    """

    transpose: bool = False
    left_right: bool = False
    up_down: bool = False

    @property
    def changes(self) -> bool:
        """Whether stored and shown pixels differ."""
        return self != UPRIGHT

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels (H, W, C) as they are shown, contiguous."""
        pixels = pixels.swapaxes(0, 1) if self.transpose else pixels
        pixels = pixels[:, ::-1] if self.left_right else pixels
        return np.ascontiguousarray(pixels[::-1] if self.up_down else pixels)

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(H, W) as shown, of stored pixels (H, W)."""
        return stored[::-1] if self.transpose else stored


UPRIGHT = Orientation()

EXIF = {
    2: Orientation(left_right=True),
    3: Orientation(left_right=True, up_down=True),
    4: Orientation(up_down=True),
    5: Orientation(transpose=True),
    6: Orientation(transpose=True, left_right=True),
    7: Orientation(transpose=True, left_right=True, up_down=True),
    8: Orientation(transpose=True, up_down=True),
}
"""Value of the EXIF tag Orientation (0x0112) -> orientation. Any other value means upright (CIPA DC-008, section 4.6.5)."""


def from_display_matrix(content: bytes) -> Orientation | None:
    """The orientation that a film's display matrix asks for; None if it is neither a turn by a multiple of 90 degrees nor a mirror.

    content: FFmpeg's AV_PKT_DATA_DISPLAYMATRIX, nine int32 a, b, u, c, d, v, x, y, w: stored (x, y) is shown at (a x + c y, b x + d y).
    """
    a, b, _, c, d = struct.unpack("=9i", content[:36])[:5]
    if a and d and max(abs(b), abs(c)) <= TOLERANCE * min(abs(a), abs(d)):
        return Orientation(left_right=a < 0, up_down=d < 0)
    if b and c and max(abs(a), abs(d)) <= TOLERANCE * min(abs(b), abs(c)):
        return Orientation(transpose=True, left_right=c < 0, up_down=b < 0)
    return None
