"""Palette PNGs, one per annotated frame: the value of a pixel is the number of its object, 0 is background."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, empty_rle, encode

MODES = ("P", "L", "1")
"""Pillow's modes with one small number per pixel: palette, grey, and what Pillow reads a palette of two colours as."""
IMAGE_ERRORS = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
"""What Pillow raises for a damaged image."""


def palette_files(folder: Path) -> dict[str, Path]:
    """Return stem -> PNG of the folder. Raises InputError: if there is no such folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of annotations; copy it from the dataset's archive")
    # Hidden files ("._00000.png"), which some desktops write next to the images, are skipped.
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() == ".png" and not p.name.startswith(".")}


def read_palette(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return object numbers uint8 (H, W). size: (H, W) of the frame; None: any.

    Raises InputError: if the file is missing or damaged, has colours instead of numbers, or has another size.
    """
    try:
        pixels = decode_palette(path.read_bytes(), str(path), "copy it again from the dataset's archive")
    except FileNotFoundError as error:
        raise InputError(f"{path}: the annotation is missing; copy it from the dataset's archive") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); copy it again from the dataset's archive") from error
    if size is not None and pixels.shape != tuple(size):
        raise InputError(f"{path}: {pixels.shape} pixels (height, width), its frame has {tuple(size)}; copy both again")
    return pixels


def decode_palette(data: bytes, location: str, fix: str) -> NDArray[np.uint8]:
    """Return the object numbers uint8 (H, W) of a PNG's bytes. location and fix: the ends of the error message.

    Raises InputError: if the data are damaged or have colours instead of numbers.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in MODES:
                raise InputError(f"{location}: expected a palette PNG of object numbers, got {image.mode}; copy it again")
            return np.asarray(image).astype(np.uint8)
    except IMAGE_ERRORS as error:
        raise InputError(f"{location}: not a whole PNG ({describe_image_error(error)}); {fix}") from error


def describe_image_error(error: Exception) -> str:
    """Return what is wrong with an image. Pillow's own message for an unknown format would print the address of a buffer."""
    return "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)


def numbers_in(pixels: NDArray[np.uint8]) -> set[int]:
    """Return the object numbers in pixels (H, W), without 0."""
    return set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()) - {0}


def palette_masks(paths: Sequence[Path | None], numbers: Sequence[int], size: tuple[int, int]) -> RleMasks:
    """Return RleMasks (A, T) of the objects `numbers` in the PNGs of T frames; empty where a frame has no PNG (None).

    Raises InputError: if a PNG is damaged or not of `size` (H, W).
    """
    rows = [[empty_rle(size)] * len(paths) for _ in numbers]
    for t, path in enumerate(paths):
        if path is None:
            continue
        pixels = read_palette(path, size)
        present = numbers_in(pixels)
        for row, number in zip(rows, numbers):
            if number in present:
                row[t] = encode(pixels == number)
    return RleMasks.from_bytes(rows, len(paths), size)
