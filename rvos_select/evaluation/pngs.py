"""Predicted mask PNGs, with a fast path for those that `merge` writes."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.frames import read_mask_png

SIGNATURE, HEADER, END = b"\x89PNG\r\n\x1a\n", b"IHDR", b"IEND"
GREY = b"\x08\x00"
"""Bit depth and colour type of 8-bit grey."""


def read_prediction(path: Path, raw: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask (H, W), not zero where it is foreground, from the bytes of its file. Raises InputError like `read_mask_png`."""
    if _is_plain(raw, size):
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
        # In uint8, 255 + 1 = 0 and 0 + 1 = 1: one pass checks that there is no other value.
        if pixels is not None and pixels.shape == tuple(size) and (pixels + np.uint8(1)).max() <= 1:
            return np.asarray(pixels)
    return read_mask_png(path, size).view(np.uint8)


def _is_plain(raw: bytes, size: tuple[int, int]) -> bool:
    """Whether these are the bytes of a complete PNG of `size` in 8-bit grey, which OpenCV reads as Pillow does."""
    if not raw.startswith(SIGNATURE):
        return False
    offset, name = len(SIGNATURE), b""
    header = size[1].to_bytes(4, "big") + size[0].to_bytes(4, "big") + GREY
    while offset + 12 <= len(raw):
        length = int.from_bytes(raw[offset : offset + 4], "big")
        name, body = raw[offset + 4 : offset + 8], raw[offset + 8 : offset + 8 + length]
        checksum = raw[offset + 8 + length : offset + 12 + length]
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(checksum, "big") or len(checksum) < 4:
            return False
        if (name == HEADER and not body.startswith(header)) or name == b"tRNS":
            return False
        offset += 12 + length
    return name == END


def prediction_bytes(path: Path, allow_missing: bool) -> bytes | None:
    """The bytes of a prediction's file; None where it is missing and `allow_missing`.

    Raises InputError when it is missing otherwise, or cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if allow_missing:
            return None
        raise InputError(f"{path}: the prediction is missing; write it, or give --allow-missing to score it 0") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); write the prediction again") from error


def check_folder(predictions: Path) -> Path:
    """`predictions`. Raises InputError when it is not a folder."""
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder of predictions; run rvos-select merge first")
    return predictions
