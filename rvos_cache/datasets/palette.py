"""Palette PNGs, one picture per annotated frame: a pixel's value is the number of its object, 0 is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, empty_rle, encode

MODES = ("P", "L", "1")
"""Pillow's names of one small number per pixel: with a palette, grey, and what Pillow makes of a palette of two."""


def palette_files(folder: Path) -> dict[str, Path]:
    """Stem -> PNG of the folder. Raises InputError: no such folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of annotations; copy it from the dataset's archive")
    # What a desktop hides beside the images ("._00000.png") is none of them.
    return {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() == ".png" and not p.name.startswith(".")}


def read_palette(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Object numbers (H, W); size: of the frame, None where it is not known.

    Raises InputError when the file is missing, cut short, holds colours instead of numbers, or has another size.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise InputError(f"{path}: wanted a palette PNG of object numbers, found {image.mode}; copy it again")
            found = (image.height, image.width)
            if size is not None and found != tuple(size):
                raise InputError(f"{path}: {found} pixels (height, width), its frame has {tuple(size)}; copy both again")
            return np.asarray(image).astype(np.uint8)
    except FileNotFoundError as error:
        raise InputError(f"{path}: the annotation is missing; copy it from the dataset's archive") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a whole PNG ({error}); copy it again from the dataset's archive") from error


def numbers_in(pixels: NDArray[np.uint8]) -> set[int]:
    """The object numbers of (H, W), without 0."""
    return set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()) - {0}


def palette_masks(paths: Sequence[Path | None], numbers: Sequence[int], size: tuple[int, int]) -> RleMasks:
    """RleMasks (A, T) of the objects `numbers` in T pictures; empty where a frame has none (None). Raises InputError."""
    rows = [[empty_rle(size)] * len(paths) for _ in numbers]
    for t, path in enumerate(paths):
        if path is None:
            continue
        pixels = read_palette(path, size)
        held = numbers_in(pixels)
        for row, number in zip(rows, numbers):
            if number in held:
                row[t] = encode(pixels == number)
    return RleMasks.from_bytes(rows, len(paths), size)
