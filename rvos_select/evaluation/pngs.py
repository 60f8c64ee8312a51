"""Predicted mask PNGs, read fast where they are what `merge` writes."""

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
"""Bit depth and colour type of eight bits of grey."""


def read_prediction(path: Path, raw: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask (H, W), not zero where it is foreground, from the bytes of its file. Raises InputError like `read_mask_png`."""
    if _is_plain(raw, size):
        pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
        # One more than 255 is 0, one more than 0 is 1: one pass tells that nothing else is there.
        if pixels is not None and pixels.shape == tuple(size) and (pixels + np.uint8(1)).max() <= 1:
            return np.asarray(pixels)
    return read_mask_png(path, size).view(np.uint8)


def _is_plain(raw: bytes, size: tuple[int, int]) -> bool:
    """Whether these are the bytes of a whole PNG of `size` in eight bits of grey: what OpenCV reads as Pillow does."""
    if not raw.startswith(SIGNATURE):
        return False
    at, name = len(SIGNATURE), b""
    while at + 12 <= len(raw):
        length = int.from_bytes(raw[at : at + 4], "big")
        name, body = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        check = raw[at + 8 + length : at + 12 + length]
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(check, "big") or len(check) < 4:
            return False
        wanted = size[1].to_bytes(4, "big") + size[0].to_bytes(4, "big") + GREY
        if (name == HEADER and not body.startswith(wanted)) or name == b"tRNS":
            return False
        at += 12 + length
    return name == END


def prediction_bytes(path: Path, allow_missing: bool) -> bytes | None:
    """A prediction's file. Where it is missing None, or, without `allow_missing`, an InputError; one too if it is unreadable."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if allow_missing:
            return None
        raise InputError(f"{path}: the prediction is missing; write it, or give --allow-missing to score it 0") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); write the prediction again") from error


def check_folder(predictions: Path) -> Path:
    """The folder of predictions. Raises InputError when it is not there."""
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder of predictions; run rvos-select merge first")
    return predictions
