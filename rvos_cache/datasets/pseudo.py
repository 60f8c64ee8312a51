"""Pseudo-videos: one image under a moving camera, for pre-training on image datasets.

After ReferFormer's `ImageToSeqAugmenter`, of which the affine part is kept (its ranges of turns and shifts); its frames are
drawn one by one and shuffled, these lie on a smooth path, so that a tracker has something to follow.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import encode

TURN, SHIFT, ZOOM = 20.0, 0.1, 1.25
"""Farthest turn in degrees, shift as a part of the side, and zoom either way."""
SLOWEST, FASTEST = 0.1, 0.5
"""Periods of a movement in one video."""


def affine_path(key: str, frames: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Matrices (T, 2, 3) that take pixels (x, y, 1) of an image of `size` (H, W) to those of each frame; T = `frames`.

    Turn, shifts and the logarithm of the zoom are sines of time, random but always the same for a `key`. One frame is the
    image itself, so every object is seen as it was annotated.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    generator = np.random.Generator(np.random.PCG64(seed))
    itself = int(generator.integers(frames))
    most = generator.uniform(-1, 1, 4) * (TURN, SHIFT, SHIFT, np.log(ZOOM))
    periods = generator.uniform(SLOWEST, FASTEST, 4)
    times = (np.arange(frames) - itself)[:, None] / frames
    height, width = size
    path = np.empty((frames, 2, 3))
    for t, (turn, right, down, zoom) in enumerate(most * np.sin(2 * np.pi * periods * times)):
        path[t] = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), float(turn), float(np.exp(zoom)))
        path[t, :, 2] += right * width, down * height
    return path


def warp_image(image: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The image (H, W, 3) moved by a matrix of `affine_path`, bilinear; what comes into view is black."""
    # Not mirrored at the border: that would show an object twice, with one mask.
    moved = cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(moved, np.uint8)


def warp_mask(mask: NDArray[np.bool_], matrix: NDArray[np.float64]) -> bytes:
    """The run-length bytes of a mask (H, W) moved alike, nearest pixel; empty where it has left the view."""
    pixels = mask.astype(np.uint8)
    return encode(cv2.warpAffine(pixels, matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT))
