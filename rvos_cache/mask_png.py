"""Masks as PNG files: 8-bit grey, 0 for the background and 255 for the foreground."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError
from rvos_cache.files import write_bytes
from rvos_cache.frames import IMAGE_ERRORS

MODES = ("1", "L", "P", "I;16", "I")
"""Pillow's image modes with one number per pixel."""
SIGNATURE, HEADER, END, TRANSPARENCY = b"\x89PNG\r\n\x1a\n", b"IHDR", b"IEND", b"tRNS"
GREY = b"\x08\x00"
"""Bit depth 8 and colour type 0 (grey) in a PNG's header."""


def encode_mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask (H, W) as the bytes of an 8-bit PNG of 0 and 255."""
    content = io.BytesIO()
    # Run-length coding alone gives less than half the bytes of zlib's default search for repetitions, in the same time.
    Image.fromarray(mask.astype(np.uint8) * 255).save(content, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return content.getvalue()


def write_mask_png(path: Path, mask: NDArray[np.bool_]) -> None:
    """Write a mask (H, W) as an 8-bit PNG of 0 and 255, atomically. Raises OSError."""
    write_bytes(path, encode_mask_png(mask))


def read_mask_png(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (H, W) bool.

    Raises InputError if the file is missing, cut short, not one number per pixel, of another size, or not of 0 and 255 (or 1).
    """
    how_to_fix = "run rvos-select merge again"
    values = np.unique(pixels := read_grey_png(path, size, how_to_fix))
    if not np.isin(values, (0, 1, 255)).all() or {1, 255} <= set(values.tolist()):
        raise InputError(f"{path}: a mask holds 0 and 255, this holds {values[:5].tolist()}; write it again")
    return pixels > 0


def decode_mask_png(path: Path, content: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask (H, W), nonzero in the foreground, from the content of its file; fast for files as `merge` writes them.

    Raises InputError like `read_mask_png`.
    """
    if _is_plain(content, size):
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        # In uint8, 255 + 1 is 0 and 0 + 1 is 1: one pass shows that no other value occurs.
        if pixels is not None and pixels.shape == tuple(size) and (pixels + np.uint8(1)).max() <= 1:
            return np.asarray(pixels)
    return read_mask_png(path, size).view(np.uint8)


def check_mask_png(path: Path, size: tuple[int, int]) -> bytes:
    """The content of a file that is an 8-bit grey PNG (H, W) of 0 and 255 and nothing else. Raises InputError."""
    # Pillow and not OpenCV, which prints warnings of its own about a damaged file.
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            mode, pixels = image.mode, np.asarray(image)
    except IMAGE_ERRORS as error:
        # Pillow's message would name the buffer in memory.
        reason = "no image" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{path}: not a readable PNG ({reason}); write it again") from error
    if mode != "L" or pixels.shape != size:
        raise InputError(f"{path}: expected 8-bit grey {size} (height, width), found {mode} {pixels.shape}; write it again")
    if not ((pixels == 0) | (pixels == 255)).all():
        other = int(pixels[(pixels > 0) & (pixels < 255)][0])
        raise InputError(f"{path}: expected values 0 and 255 only, found {other}; write it again")
    return content


def read_grey_png(path: Path, size: tuple[int, int], how_to_fix: str) -> NDArray[Any]:
    """The numbers (H, W) of an image with one number per pixel, in the file's own dtype.

    how_to_fix: the end of the messages for a missing or damaged file. Raises InputError, also for colours or another size.
    """
    try:
        with Image.open(path) as image:
            own_size = (image.height, image.width)
            if image.mode not in MODES:
                raise InputError(f"{path}: a mask is a grey PNG, this is {image.mode}; write it again")
            if own_size != tuple(size):
                raise InputError(
                    f"{path}: the mask is {own_size}, its frame {tuple(size)} (height, width); write it at the frame's size"
                )
            return np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: the mask is missing; {how_to_fix}") from error
    except IMAGE_ERRORS as error:
        raise InputError(f"{path}: not a whole PNG ({error}); {how_to_fix}") from error


def _is_plain(content: bytes, size: tuple[int, int]) -> bool:
    """Whether `content` is a whole 8-bit grey PNG of `size`, which OpenCV and Pillow decode alike."""
    if not content.startswith(SIGNATURE):
        return False
    start, name = len(SIGNATURE), b""
    while start + 12 <= len(content):
        length = int.from_bytes(content[start : start + 4], "big")
        name, body = content[start + 4 : start + 8], content[start + 8 : start + 8 + length]
        crc = content[start + 8 + length : start + 12 + length]
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(crc, "big") or len(crc) < 4:
            return False
        expected = size[1].to_bytes(4, "big") + size[0].to_bytes(4, "big") + GREY
        if (name == HEADER and not body.startswith(expected)) or name == TRANSPARENCY:
            return False
        start += 12 + length
    return name == END
