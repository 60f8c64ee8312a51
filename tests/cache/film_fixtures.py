"""Films as cameras and programs write them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

Matrix = tuple[int, int, int, int]
"""a, b, c, d of a display matrix: the stored pixel (x, y) is shown at (a x + c y, b x + d y)."""


def quarters(size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """(H, W, 3): red at the top left, green at the top right, blue below left, white below right; no symmetry keeps it."""
    frame = np.empty((*size, 3), np.uint8)
    h, w = size[0] // 2, size[1] // 2
    frame[:h, :w], frame[:h, w:], frame[h:, :w], frame[h:, w:] = (220, 30, 30), (30, 200, 30), (30, 30, 220), (235, 235, 235)
    return frame


def write_film(
    path: Path,
    frames: Sequence[np.ndarray],
    rate: int | Fraction = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: str | None = None,
    milliseconds: Sequence[int] | None = None,
    matrix: Matrix | None = None,
    **context: int,
) -> Path:
    """frames: (H, W, 3) RGB or (H, W, 4) RGBA; milliseconds: when each is shown; context: attributes of the encoder."""
    with av.open(str(path), "w", format=container) as film:
        stream = film.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = pix_fmt, {"crf": "8"} if codec == "libx264" else {}
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for t, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[t], Fraction(1, 1000)
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    if matrix is not None:
        set_matrix(path, matrix)
    return path


def set_matrix(path: Path, matrix: Matrix) -> None:
    """Write a display matrix into the header of the only track of an mp4 (ISO/IEC 14496-12, section 8.3.2)."""
    one, content = 1 << 16, bytearray(path.read_bytes())
    still = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    position = content.find(still, content.find(b"tkhd"))
    a, b, c, d = matrix
    content[position : position + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
