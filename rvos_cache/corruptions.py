"""Frames made worse before any model sees them, with ImageNet-C's names and severities.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019; the
parameters are those of their published ImageNet-C. Written here because of its two packages `imagecorruptions` wants
pkg_resources and a SciPy that is gone, and `imagecorruptions-imaug` numba (0.2 GB) and a second OpenCV over the headless one;
and both draw from numpy's global state, so that a run again would find other noise.
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


def corrupted(video: Video, corruption: str) -> Video:
    """`video` with every frame corrupted, `corruption` "name:severity" as in "gaussian_noise:5".

    What is drawn hangs on the name, the video's id and the frame's name alone, so that any process, order of reading and
    shard sees the same frames, and two severities the same draws. Raises InputError for another name or severity.
    """
    name, severity = parsed(corruption)
    change = CORRUPTIONS[name]

    def source(t: int) -> Frame:
        seed = f"{name}/{video.video_id}/{video.frame_names[t]}".encode()
        draws = np.random.default_rng(int.from_bytes(hashlib.blake2b(seed, digest_size=16).digest(), "big"))
        return change(video.read(t), severity, draws)

    return replace(video, source=source)


def parsed(corruption: str) -> tuple[str, int]:
    """Name and severity of "name:severity". Raises InputError, listing what exists."""
    name, _, severity = corruption.partition(":")
    if name not in CORRUPTIONS or severity not in map(str, SEVERITIES):
        raise InputError(
            f"no corruption {corruption!r}; there are: {', '.join(CORRUPTIONS)}, each with a severity from "
            f"{SEVERITIES[0]} to {SEVERITIES[-1]}, as in gaussian_noise:5"
        )
    return name, int(severity)


def gaussian_noise(frame: Frame, severity: int, draws: np.random.Generator) -> Frame:
    """Normal noise on every channel, standard deviation 0.08 to 0.38 of the full range."""
    deviation = np.float32([0.08, 0.12, 0.18, 0.26, 0.38][severity - 1])
    return _levels(_shares(frame) + deviation * draws.standard_normal(frame.shape, np.float32))


def shot_noise(frame: Frame, severity: int, draws: np.random.Generator) -> Frame:
    """Every channel counts photons, a Poisson number whose mean is 60 to 3 at full brightness."""
    photons = [60, 25, 12, 5, 3][severity - 1]
    return _levels(draws.poisson(_shares(frame) * photons) / photons)


def impulse_noise(frame: Frame, severity: int, draws: np.random.Generator) -> Frame:
    """Salt and pepper, half each: 0.03 to 0.27 of all values become 0 or 255."""
    struck = [0.03, 0.06, 0.09, 0.17, 0.27][severity - 1]
    dice = draws.random(frame.shape, np.float32)
    return np.where(dice < struck / 2, 0, np.where(dice < struck, 255, frame)).astype(np.uint8)


def motion_blur(frame: Frame, severity: int, draws: np.random.Generator) -> Frame:
    """A pixel is the mean along a line from it, at a drawn angle of -45 to 45 degrees, under the falling half of a Gaussian.

    radius and sigma in pixels: the line has 2 radius + 1 steps. As ImageMagick's motion blur, which made ImageNet-C: steps are
    rounded to whole pixels, the border repeats outside, and the mean is rounded.
    """
    radius, sigma = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)][severity - 1]
    angle = np.deg2rad(draws.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    right, down = (np.ceil(steps * along - 0.5).astype(int) for along in (np.cos(angle), np.sin(angle)))
    border, (height, width) = 2 * radius + 1, frame.shape[:2]
    wide = np.pad(frame, ((border, border), (border, border), (0, 0)), mode="edge").astype(np.float32)
    total = np.zeros(frame.shape, np.float32)
    for x, y, weight in zip(border + right, border + down, (weights / weights.sum()).astype(np.float32)):
        total += wide[y : y + height, x : x + width] * weight
    return np.rint(total).astype(np.uint8)


def _shares(frame: Frame) -> NDArray[np.float32]:
    return frame.astype(np.float32) / np.float32(255)


def _levels(shares: NDArray[np.floating]) -> Frame:
    # ImageNet-C cuts the fraction of a level off where we would round it.
    return (np.clip(shares, 0, 1) * 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[Frame, int, np.random.Generator], Frame]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "motion_blur": motion_blur,
}
