"""Frames as picture files: every common bit depth, colour model and EXIF orientation as uint8 RGB, or an error of one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError, warn_once
from rvos_cache.media.orientation import EXIF, UPRIGHT, Orientation

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Endings of the files that are read as frames, also in capitals."""
UNREAD = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".exr", ".hdr", ".dng", ".ppm", ".pgm", ".tga")
"""Endings of other pictures. A folder of frames or masks that has one is refused: a frame would be lost."""
IMAGE_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
"""What Pillow raises for a damaged image. DecompressionBombError: a damaged header may claim more pixels than Pillow accepts."""
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of grey pictures of 16 bits; the last one also has 32 bits."""
ORIENTATION_TAG = 0x0112
DARK = 1 << 12
"""A picture of 16 bits without a value of this size is almost black: it may hold the 12 bits of a camera."""


def read_image(path: Path, upright: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a picture; 16 bits are cut to the upper 8, as OpenCV does.

    upright: turn the pixels as the EXIF tag says, as viewers do; False: as stored. Raises InputError if the file is missing, no
    image, cut short, or has no one right frame: several pictures, transparent pixels, or numbers of more than 16 bits.

    Pillow and not OpenCV: OpenCV fills the missing part of a truncated JPEG with grey, without an error.
    """
    with open_image(path) as image:
        pixels = _to_rgb(image, path)
        # After the pixels are decoded: a PNG may have the tag behind them.
        turn = orientation(image) if upright else UPRIGHT
    return turn.apply(pixels) if turn.changes else pixels


def image_size(path: Path, upright: bool = False) -> tuple[int, int]:
    """(H, W) of `read_image(path, upright)`, also where the pixels are damaged. Raises InputError."""
    with open_image(path) as image:
        stored = (image.height, image.width)
        return _orientation_of_header(image).size(stored) if upright else stored


def is_turned(path: Path) -> bool:
    """Whether the EXIF tag of a picture asks for another orientation than the stored one. Raises InputError like `image_size`."""
    with open_image(path) as image:
        return _orientation_of_header(image).changes


def orientation(image: Image.Image) -> Orientation:
    """The orientation that an opened picture's EXIF tag asks for."""
    return EXIF.get(image.getexif().get(ORIENTATION_TAG, 1), UPRIGHT)


def _orientation_of_header(image: Image.Image) -> Orientation:
    try:
        return orientation(image)
    except IMAGE_ERRORS:
        # Pillow looks for the tag of a PNG behind its pixels too. Where these are damaged, reading the frame is the error.
        return UPRIGHT


def check_mask_image(image: Image.Image, location: str) -> None:
    """Raise InputError if an opened mask holds several pictures, or its EXIF tag turns it: its pixels could belong to another frame."""
    count = getattr(image, "n_frames", 1)
    if count > 1:
        raise InputError(f"{location}: holds {count} pictures, a mask is one; save each as a file")
    if orientation(image).changes:
        raise InputError(f"{location}: has an EXIF tag that turns it; save the mask as its frame is shown, without the tag")


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open a picture file. Raises InputError if it is missing, holds several pictures, or Pillow raises inside the `with`."""
    try:
        with Image.open(path) as image:
            # MPO: a JPEG of a camera, with a preview or a gain map behind the picture.
            count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if count > 1:
                raise InputError(f"{path}: holds {count} pictures, a frame is one; save each as a file, or give a film")
            yield image
    except FileNotFoundError as error:
        raise InputError(f"{path}: the frame is missing; copy it from the dataset's archive") from error
    except IMAGE_ERRORS as error:
        raise InputError(f"{path}: not a whole image ({error}); copy it again from the dataset's archive") from error


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, as stored. Raises InputError for transparent pixels and numbers of more than 16 bits."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise InputError(f"{path}: pixels of 32 bits, whose black and white are unknown; save the frame with 8 bits")
    if image.mode in SIXTEEN_BITS:
        if "transparency" in image.info:
            raise _transparent(path)
        values = np.asarray(image)
        if values.max(initial=0) < DARK:
            warn_once(
                f"{path.parent}: 16-bit frames are read from 0 to 65535, and {path.name} has no value above {values.max()}, so it "
                "is almost black; if its white is smaller, save the frames with 8 bits"
            )
        grey = (values >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        if rgba[..., 3].min() < 255:
            raise _transparent(path)
        return np.ascontiguousarray(rgba[..., :3])
    return np.asarray(image.convert("RGB"))


def _transparent(path: Path) -> InputError:
    return InputError(f"{path}: has transparent pixels, whose colour is unknown; save the frame over a background")
