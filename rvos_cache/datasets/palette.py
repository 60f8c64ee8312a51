"""Palette PNGs, one per annotated frame: the value of a pixel is the number of its object, 0 is background.

As in the benchmarks' code the palette's indices count, not its colours. A program that saves such a file anew may number the
colours anew, so the palette is checked: colour 0 must be dark, and a number must keep its colour in all PNGs of a video.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rvos_cache.errors import InputError, warn_once
from rvos_cache.masks import RleMasks, empty_rle, encode
from rvos_cache.media.images import IMAGE_ERRORS, SUFFIXES, UNREAD, check_mask_image

MODES = ("P", "L", "1")
"""Pillow's modes with one small number per pixel: palette, grey of 8 bits and of one."""
DARK = 32
"""Largest red, green or blue of the colour of the background."""


def palette_files(folder: Path) -> dict[str, Path]:
    """Return stem -> PNG of the folder.

    Raises InputError: if there is no such folder, a stem occurs twice, or a picture there is no PNG.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder of annotations; copy it from the dataset's archive")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # Hidden files ("._00000.png"), which some desktops write next to the images, are skipped.
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES + UNREAD:
            continue
        if path.suffix.lower() != ".png":
            raise InputError(f"{path}: an annotation is a PNG, other pictures change its numbers; save it as PNG or remove it")
        if path.stem in files:
            raise InputError(f"{folder}: {files[path.stem].name} and {path.name} are of one frame; keep one")
        files[path.stem] = path
    return files


class LabelMaps:
    """Reads the palette PNGs of one video. size: (H, W) of the frames; None: any."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size
        self.palettes: dict[bytes, Path] = {}
        """Each palette, three bytes per number, and the first PNG that has it."""

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Return object numbers uint8 (H, W); warn, once, if one has another colour than in an earlier PNG.

        Raises InputError: if the file is missing or damaged, has another size, or is not of object numbers, see `decode_palette`.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"{path}: the annotation is missing; copy it from the dataset's archive") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error}); copy it again from the dataset's archive") from error
        pixels, palette = _decode(content, str(path), "copy it again from the dataset's archive")
        if self.size is not None and pixels.shape != tuple(self.size):
            raise InputError(f"{path}: {pixels.shape} pixels (height, width), its frame has {tuple(self.size)}; copy both again")
        if palette and palette not in self.palettes:
            self._compare(path, palette, numbers_in(pixels))
            self.palettes[palette] = path
        return pixels

    def _compare(self, path: Path, palette: bytes, numbers: set[int]) -> None:
        for other, first in self.palettes.items():
            for number in sorted(numbers):
                colour, expected = (tuple(p[3 * number : 3 * number + 3]) for p in (palette, other))
                if expected and colour != expected:
                    renumbered = f"object {number} has the colour {colour}, in {first.name} {expected}"
                    warn_once(f"{path}: {renumbered}; if a program numbered the colours anew, save the PNGs with one palette")
                    return


def read_palette(path: Path, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return object numbers uint8 (H, W) of a single PNG, as `LabelMaps` does."""
    return LabelMaps(size).read(path)


def decode_palette(data: bytes, location: str, fix: str) -> NDArray[np.uint8]:
    """Return the object numbers uint8 (H, W) of a PNG's bytes. location and fix: the ends of the error message.

    Raises InputError: if the data are damaged, have colours instead of numbers, several pictures, an EXIF tag that turns them, or
    a palette whose colour 0 is not dark.
    """
    return _decode(data, location, fix)[0]


def _decode(data: bytes, location: str, fix: str) -> tuple[NDArray[np.uint8], bytes]:
    """Return `decode_palette` and the palette, three bytes per number; empty where the PNG has none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in MODES:
                raise InputError(f"{location}: expected a palette PNG of object numbers, got {image.mode}; copy it again")
            pixels = np.asarray(image).astype(np.uint8)
            check_mask_image(image, location)
            palette = bytes(image.getpalette() or ()) if image.mode == "P" else b""
    except IMAGE_ERRORS as error:
        raise InputError(f"{location}: not a whole PNG ({describe_image_error(error)}); {fix}") from error
    if max(palette[:3], default=0) > DARK:
        problem = f"colour 0 of its palette, the background, is {tuple(palette[:3])}, expected black"
        raise InputError(f"{location}: {problem}; save object numbers in grey, or with a palette that begins with black")
    return pixels, palette


def describe_image_error(error: Exception) -> str:
    """Return what is wrong with an image. Pillow's own message for an unknown format would print the address of a buffer."""
    return "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)


def numbers_in(pixels: NDArray[np.uint8]) -> set[int]:
    """Return the object numbers in pixels (H, W), without 0."""
    return set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()) - {0}


def palette_masks(paths: Sequence[Path | None], numbers: Sequence[int], size: tuple[int, int]) -> RleMasks:
    """Return RleMasks (A, T) of the objects `numbers` in the PNGs of T frames; empty where a frame has no PNG (None).

    Raises InputError: as `LabelMaps.read` does. size: (H, W).
    """
    rows, label_maps = [[empty_rle(size)] * len(paths) for _ in numbers], LabelMaps(size)
    for t, path in enumerate(paths):
        if path is None:
            continue
        pixels = label_maps.read(path)
        present = numbers_in(pixels)
        for row, number in zip(rows, numbers):
            if number in present:
                row[t] = encode(pixels == number)
    return RleMasks.from_bytes(rows, len(paths), size)
