"""Frames with masks drawn on them, as JPEG files."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rvos_cache.system.files import write_bytes

HEIGHT = 160
PREDICTION = (255, 112, 32)
TRUTH = (32, 220, 255)
TRACK = (150, 110, 255)


def overlay(
    frame: NDArray[np.uint8], mask: NDArray[np.bool_], color: tuple[int, int, int], truth: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """`frame` (H, W, 3) at HEIGHT pixels, with `mask` (H, W) filled in `color` and the contour of `truth` (H, W) in TRUTH."""
    scale = HEIGHT / frame.shape[0]
    size = (max(1, round(frame.shape[1] * scale)), HEIGHT)
    picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    fill = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    picture[fill] = (0.45 * picture[fill] + 0.55 * np.array(color)).astype(np.uint8)
    _contour(picture, fill, color, 1)
    if truth is not None:
        _contour(picture, cv2.resize(truth.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool), TRUTH, 2)
    return picture


def _contour(image: NDArray[np.uint8], mask: NDArray[np.bool_], color: tuple[int, int, int], width: int) -> None:
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, lines, -1, color, width, cv2.LINE_AA)


def strip(pictures: list[NDArray[np.uint8]], path: Path) -> None:
    """Write pictures side by side with a thin gap, as one JPEG."""
    gap = np.full((pictures[0].shape[0], 4, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, gap)][:-1]
    # To memory first: Pillow takes no notice when a full disk accepts only a part of a file.
    content = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(content, "JPEG", quality=88)
    write_bytes(path, content.getvalue())
