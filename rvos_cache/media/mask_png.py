"""Masks as PNG files: 8-bit grey, 0 for the background and 255 for the foreground.

Files of other programs are read by what they show, as the benchmarks read them with OpenCV: of a palette the grey of its colours.
Label maps, whose palette indices are object numbers, are read by `rvos_cache.datasets.palette`.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError
from rvos_cache.media.images import IMAGE_ERRORS, SIXTEEN_BITS, check_mask_image
from rvos_cache.system.files import write_bytes

MODES = ("1", "L", "P", *SIXTEEN_BITS)
"""Pillow's image modes with one number per pixel."""
SIGNATURE, HEADER, END = b"\x89PNG\r\n\x1a\n", b"IHDR", b"IEND"
NOT_PLAIN = (b"tRNS", b"eXIf", b"acTL")
"""Parts of a PNG after which its pixels are not the whole mask: transparency, orientation, more pictures."""
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
    """A mask (H, W) bool: not black.

    Raises InputError if the file is missing, cut short, not one number per pixel, of another size, not of 0 and 255 (or 1; of a
    palette: not of black and one other colour), or as `read_grey_png` does.
    """
    pixels, has_palette = _read_grey(path, size, "run rvos-select merge again")
    values = np.unique(pixels).tolist()
    if not (set(values) <= {0, 255} or set(values) <= {0, 1} or (has_palette and values[0] == 0 and len(values) == 2)):
        raise InputError(f"{path}: a mask holds 0 and 255, this holds {values[:5]}; write it again")
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
            check_mask_image(image, str(path))
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


def read_grey_png(path: Path, size: tuple[int, int], how_to_fix: str) -> NDArray[np.uint8]:
    """The grey levels (H, W) of an image with one number per pixel: of a palette those of its colours, of 16 bits the upper 8 (the
    lower 8 of smaller numbers, so that no pixel is lost).

    how_to_fix: the end of the messages for a missing or damaged file. Raises InputError, also for pixels of three colours, another
    size, and where the mask is not known: a palette of one colour for several numbers, transparent pixels that are not black,
    several pictures, an EXIF tag that turns it.
    """
    return _read_grey(path, size, how_to_fix)[0]


def _read_grey(path: Path, size: tuple[int, int], how_to_fix: str) -> tuple[NDArray[np.uint8], bool]:
    """`read_grey_png`, and whether the file has a palette."""
    try:
        with Image.open(path) as image:
            own_size = (image.height, image.width)
            if image.mode not in MODES:
                raise InputError(f"{path}: a mask is a grey PNG, this is {image.mode}; write it again")
            if own_size != tuple(size):
                raise InputError(
                    f"{path}: the mask is {own_size}, its frame {tuple(size)} (height, width); write it at the frame's size"
                )
            grey = _grey(image, path)
            check_mask_image(image, str(path))
            return grey, image.mode == "P"
    except FileNotFoundError as error:
        raise InputError(f"{path}: the mask is missing; {how_to_fix}") from error
    except IMAGE_ERRORS as error:
        raise InputError(f"{path}: not a whole PNG ({error}); {how_to_fix}") from error


def _grey(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """The grey levels (H, W) of an opened picture. Raises InputError."""
    if image.mode in SIXTEEN_BITS:
        values = np.clip(np.asarray(image), 0, (1 << 16) - 1)
        return np.where(values > 255, values >> 8, values).astype(np.uint8)
    grey = np.asarray(image.convert("L"))
    if image.mode == "P" and grey.min(initial=255) == grey.max(initial=0) and np.ptp(np.asarray(image)) > 0:
        raise InputError(f"{path}: its palette has one colour for several numbers; save the mask in grey, 0 and 255")
    if image.has_transparency_data:
        opaque = np.asarray(image.convert("RGBA"))[..., 3] == 255
        if not opaque.all() and not np.array_equal(opaque, grey > 0):
            raise InputError(f"{path}: has transparent pixels that are not its black ones; save the mask in grey, 0 and 255")
    return grey


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
        if (name == HEADER and not body.startswith(expected)) or name in NOT_PLAIN:
            return False
        start += 12 + length
    return name == END
