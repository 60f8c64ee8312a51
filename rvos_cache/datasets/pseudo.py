"""Pseudo-videos: one image under a moving camera, for pre-training on image datasets.

The affine part, with its ranges of rotation and shift, is that of ReferFormer's `ImageToSeqAugmenter`. ReferFormer samples each
frame separately and shuffles them; here the frames lie on a smooth path, so that a tracker can follow the objects.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import encode

MAX_ROTATION, MAX_SHIFT, MAX_ZOOM = 20.0, 0.1, 1.25
"""Largest rotation in degrees, shift as a fraction of the side, and zoom factor, each in both directions."""
MIN_PERIODS, MAX_PERIODS = 0.1, 0.5
"""Range of the number of periods of a movement in one video."""


def affine_path(key: str, frames: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return matrices (T, 2, 3) that map pixels (x, y, 1) of an image of `size` (H, W) to those of T = `frames` frames.

    Rotation, shifts and the logarithm of the zoom are sines of time with random amplitudes and periods, seeded by `key`. One
    frame is the image itself, so that every object is visible as it was annotated.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    generator = np.random.Generator(np.random.PCG64(seed))
    original = int(generator.integers(frames))
    amplitudes = generator.uniform(-1, 1, 4) * (MAX_ROTATION, MAX_SHIFT, MAX_SHIFT, np.log(MAX_ZOOM))
    periods = generator.uniform(MIN_PERIODS, MAX_PERIODS, 4)
    times = (np.arange(frames) - original)[:, None] / frames
    height, width = size
    path = np.empty((frames, 2, 3))
    for t, (rotation, right, down, zoom) in enumerate(amplitudes * np.sin(2 * np.pi * periods * times)):
        path[t] = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), float(rotation), float(np.exp(zoom)))
        path[t, :, 2] += right * width, down * height
    return path


def warp_image(image: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the image (H, W, 3) transformed by a matrix of `affine_path`, bilinear; pixels from outside it are black."""
    # Not mirrored at the border: an object would then be visible twice, with one mask.
    warped = cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(warped, np.uint8)


def warp_mask(mask: NDArray[np.bool_], matrix: NDArray[np.float64]) -> bytes:
    """Return the run-length bytes of a mask (H, W) transformed likewise, nearest pixel; empty if it has left the frame."""
    pixels = mask.astype(np.uint8)
    return encode(cv2.warpAffine(pixels, matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT))
