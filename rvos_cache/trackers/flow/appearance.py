"""What an object looks like, learned while it is followed: a ridge classifier on random Fourier features.

Rahimi and Recht, 2007: cos(W x + b) with Gaussian W approximates a Gaussian kernel. Letters: P pixels, F features.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

INPUTS = 8
FEATURES = 80
RIDGE = 2.0


def pixel_inputs(frame: NDArray[np.uint8]) -> NDArray[np.float16]:
    """(h, w, 8): Lab, Lab blurred over 4 pixels, gradient length at two scales; each of about unit spread."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / np.array([20, 12, 12], np.float32)
    blurred = cv2.GaussianBlur(lab, (0, 0), 4)
    light = lab[..., 0] * 4
    texture = []
    for sigma in (1.5, 4):
        dx, dy = cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1)
        texture.append(np.log1p(cv2.GaussianBlur(np.hypot(dx, dy), (0, 0), sigma)))
    return np.concatenate([lab, blurred, np.stack(texture, -1)], -1).astype(np.float16)


class Fourier:
    """The feature map, the same for all tracks of a video: a fixed seed, a bandwidth, 80 cosines and a constant."""

    def __init__(self, seed: int, bandwidth: float = 1.3) -> None:
        rng = np.random.default_rng(seed)
        self.weight = (rng.standard_normal((INPUTS, FEATURES)) / bandwidth).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32)

    def __call__(self, inputs: NDArray[np.float16]) -> NDArray[np.float32]:
        """(P, 8) to (P, F + 1)."""
        angle = inputs.astype(np.float32) @ self.weight + self.phase
        return np.concatenate([np.cos(angle), np.ones((len(angle), 1), np.float32)], 1)


class Ridge:
    """A classifier of +1 inside and -1 outside; half of it always remembers the prompt, the rest is updated slowly."""

    def __init__(self, features: NDArray[np.float32], inside: NDArray[np.float32]) -> None:
        self.first = self._moments(features, inside)
        self.recent = self.first
        self._solve()

    def copy(self) -> Ridge:
        """An independent copy, for the other direction of time."""
        other = object.__new__(Ridge)
        other.first, other.recent, other.weights = self.first, self.recent, self.weights
        return other

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, F) to (P,), about -1 to 1."""
        return features @ self.weights

    def update(self, features: NDArray[np.float32], inside: NDArray[np.float32], rate: float = 0.08) -> None:
        """Take in a frame: soft membership (P,) in [0, 1]; doubtful pixels hardly count."""
        gram, target = self._moments(features, inside)
        self.recent = ((1 - rate) * self.recent[0] + rate * gram, (1 - rate) * self.recent[1] + rate * target)
        self._solve()

    @staticmethod
    def _moments(features: NDArray[np.float32], inside: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        label = 2 * inside - 1
        sure = np.abs(label)
        plus, minus = sure * (label > 0), sure * (label < 0)
        # Object and surround count alike, whatever their areas; 2000 pixels in all set the scale of the ridge.
        weight = 1000 * (plus / max(float(plus.sum()), 1) + minus / max(float(minus.sum()), 1))
        weighted = features * weight[:, None]
        return (weighted.T @ features).astype(np.float32), (weighted.T @ np.sign(label)).astype(np.float32)

    def _solve(self) -> None:
        gram = (self.first[0] + self.recent[0]) / 2
        target = (self.first[1] + self.recent[1]) / 2
        eye = RIDGE * np.eye(len(gram), dtype=np.float32)
        self.weights = np.linalg.solve(gram + eye, target).astype(np.float32)
