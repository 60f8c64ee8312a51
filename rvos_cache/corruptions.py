"""Corruptions of the frames that a tracker reads, with the names and severities of ImageNet-C.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019; the
parameters are those of their published ImageNet-C. Implemented here because `imagecorruptions` needs pkg_resources and an old
SciPy, `imagecorruptions-imaug` needs numba (0.2 GB) and a second OpenCV next to the headless one, and both sample from NumPy's
global state, so that a second run would give other noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.types import Video

Frame = NDArray[np.uint8]
SEVERITIES = range(1, 6)


def corrupt_video(video: Video, corruption: str) -> Video:
    """`video` with every frame corrupted. corruption: "name:severity", for instance "gaussian_noise:5".

    The random numbers depend only on the corruption's name, the video's id and the frame's name: every process, order of
    reading and shard gives the same frames, and all severities use the same numbers. Raises InputError like
    `parse_corruption`.
    """
    name, severity = parse_corruption(corruption)
    corrupt_frame = CORRUPTIONS[name]

    def source(t: int) -> Frame:
        seed = f"{name}/{video.video_id}/{video.frame_names[t]}".encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(seed, digest_size=16).digest(), "big"))
        return corrupt_frame(video.read(t), severity, rng)

    return replace(video, source=source)


def parse_corruption(corruption: str) -> tuple[str, int]:
    """Name and severity of "name:severity". Raises InputError for others than the ones that it lists."""
    name, _, severity = corruption.partition(":")
    if name not in CORRUPTIONS or severity not in map(str, SEVERITIES):
        raise InputError(
            f"no corruption {corruption!r}; there are: {', '.join(CORRUPTIONS)}, each with a severity from "
            f"{SEVERITIES[0]} to {SEVERITIES[-1]}, as in gaussian_noise:5"
        )
    return name, int(severity)


def gaussian_noise(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Normal noise on every channel, with a standard deviation of 0.08 to 0.38 of the full range."""
    deviation = np.float32([0.08, 0.12, 0.18, 0.26, 0.38][severity - 1])
    return _to_uint8(_to_unit(frame) + deviation * rng.standard_normal(frame.shape, np.float32))


def shot_noise(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Poisson noise on every channel, with a mean of 60 to 3 photons at full brightness."""
    photons = [60, 25, 12, 5, 3][severity - 1]
    return _to_uint8(rng.poisson(_to_unit(frame) * photons) / photons)


def impulse_noise(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """Salt and pepper noise: a share of 0.03 to 0.27 of all values become 0 or 255, half each."""
    share = [0.03, 0.06, 0.09, 0.17, 0.27][severity - 1]
    uniform = rng.random(frame.shape, np.float32)
    return np.where(uniform < share / 2, 0, np.where(uniform < share, 255, frame)).astype(np.uint8)


def motion_blur(frame: Frame, severity: int, rng: np.random.Generator) -> Frame:
    """The mean along a line that starts at the pixel, weighted by half a Gaussian, at a random angle of -45 to 45 degrees.

    radius and sigma are in pixels: the line has 2 radius + 1 steps. As in ImageMagick's motion blur, with which ImageNet-C was
    made, steps are rounded to whole pixels, the border is repeated outside the frame, and the mean is rounded.
    """
    radius, sigma = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)][severity - 1]
    angle = np.deg2rad(rng.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    right, down = (np.ceil(steps * part - 0.5).astype(int) for part in (np.cos(angle), np.sin(angle)))
    border, (height, width) = 2 * radius + 1, frame.shape[:2]
    padded = np.pad(frame, ((border, border), (border, border), (0, 0)), mode="edge").astype(np.float32)
    total = np.zeros(frame.shape, np.float32)
    for x, y, weight in zip(border + right, border + down, (weights / weights.sum()).astype(np.float32)):
        total += padded[y : y + height, x : x + width] * weight
    return np.rint(total).astype(np.uint8)


def _to_unit(frame: Frame) -> NDArray[np.float32]:
    """Values in [0, 1]."""
    return frame.astype(np.float32) / np.float32(255)


def _to_uint8(values: NDArray[np.floating]) -> Frame:
    """The inverse of `_to_unit`, clipped."""
    # Truncated, not rounded, as in ImageNet-C.
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[Frame, int, np.random.Generator], Frame]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "motion_blur": motion_blur,
}
