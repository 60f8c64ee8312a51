"""The appearance model of a track, learned online: a ridge classifier on random Fourier features of the pixels.

cos(W x + b) with Gaussian W approximates a Gaussian kernel (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines",
NIPS 2007). Letters: P pixels, F features, h w pixels of the frame.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

INPUTS = 8
"""Numbers per pixel."""
FEATURES = 80
"""F, without the constant."""
RIDGE = 2.0
"""Weight of the regularisation term."""


def pixel_inputs(frame: NDArray[np.uint8]) -> NDArray[np.float16]:
    """The classifier's inputs (h, w, 8) of a frame (h, w, 3) RGB: Lab, Lab blurred with sigma 4, log gradient magnitude at two
    scales; each has a standard deviation of about 1."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / np.array([20, 12, 12], np.float32)
    blurred = cv2.GaussianBlur(lab, (0, 0), 4)
    lightness = lab[..., 0] * 4
    texture = []
    for sigma in (1.5, 4):
        dx, dy = cv2.Sobel(lightness, cv2.CV_32F, 1, 0), cv2.Sobel(lightness, cv2.CV_32F, 0, 1)
        texture.append(np.log1p(cv2.GaussianBlur(np.hypot(dx, dy), (0, 0), sigma)))
    return np.concatenate([lab, blurred, np.stack(texture, -1)], -1).astype(np.float16)


class Fourier:
    """The feature map, the same for all tracks of a video: FEATURES cosines and a constant."""

    def __init__(self, seed: int, bandwidth: float = 1.3) -> None:
        rng = np.random.default_rng(seed)
        self.weight = (rng.standard_normal((INPUTS, FEATURES)) / bandwidth).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32)

    def __call__(self, inputs: NDArray[np.float16]) -> NDArray[np.float32]:
        """(P, 8) to (P, F + 1)."""
        angle = inputs.astype(np.float32) @ self.weight + self.phase
        return np.concatenate([np.cos(angle), np.ones((len(angle), 1), np.float32)], 1)


class Ridge:
    """A linear classifier, trained towards +1 inside the mask and -1 outside.

    It is the solution for the mean of two sets of moments: those of the prompt, which stay, and a moving average of later frames.
    features: (P, F); inside: membership (P,) in [0, 1].
    """

    def __init__(self, features: NDArray[np.float32], inside: NDArray[np.float32]) -> None:
        self.first = self._moments(features, inside)
        self.recent = self.first
        self._solve()

    def copy(self) -> Ridge:
        """An independent copy, for one direction of time."""
        other = object.__new__(Ridge)
        other.first, other.recent, other.weights = self.first, self.recent, self.weights
        return other

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (P,), about -1 to 1, of features (P, F)."""
        return features @ self.weights

    def update(self, features: NDArray[np.float32], inside: NDArray[np.float32], rate: float = 0.08) -> None:
        """Update the moving average with a frame; pixels with a membership near 0.5 have little weight."""
        gram, target = self._moments(features, inside)
        self.recent = ((1 - rate) * self.recent[0] + rate * gram, (1 - rate) * self.recent[1] + rate * target)
        self._solve()

    @staticmethod
    def _moments(features: NDArray[np.float32], inside: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        label = 2 * inside - 1
        certainty = np.abs(label)
        positive, negative = certainty * (label > 0), certainty * (label < 0)
        # Object and surround have equal weight, whatever their areas; a total of 2000 pixels sets the scale of RIDGE.
        weight = 1000 * (positive / max(float(positive.sum()), 1) + negative / max(float(negative.sum()), 1))
        weighted = features * weight[:, None]
        return (weighted.T @ features).astype(np.float32), (weighted.T @ np.sign(label)).astype(np.float32)

    def _solve(self) -> None:
        gram = (self.first[0] + self.recent[0]) / 2
        target = (self.first[1] + self.recent[1]) / 2
        eye = RIDGE * np.eye(len(gram), dtype=np.float32)
        self.weights = np.linalg.solve(gram + eye, target).astype(np.float32)
