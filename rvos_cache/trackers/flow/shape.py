"""Measurements of one mask in one frame: geometry, contour, colour and local flow.

Letters: h w pixels at working resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

HUES = 12
GREYS = 4
PROFILE = 16


MEASUREMENTS = {
    "centre": 2, "box": 4, "area": 1, "shape": 7, "profile": PROFILE, "colour": 9, "histogram": HUES + GREYS, "flow": 6,
}  # fmt: skip
"""Name -> size of the measurements of a mask: centre x y, box x0 y0 x1 y1 and area in working pixels; the others as in the
table of tokens.py."""
_ends = np.cumsum(list(MEASUREMENTS.values()))
COLUMNS = {name: slice(int(end) - size, int(end)) for (name, size), end in zip(MEASUREMENTS.items(), _ends)}
"""Name -> its slice of a row of measurements."""
WIDTH = int(_ends[-1])


@dataclass(frozen=True, eq=False)
class FramePixels:
    """What the measurements read of one frame: lab float32 (h, w, 3) in [-1, 1]; palette uint8 (h, w), bins of
    `colour_bins`; residual float32 (h, w, 2), flow without the camera motion, in working pixels per frame."""

    lab: NDArray[np.float32]
    palette: NDArray[np.uint8]
    residual: NDArray[np.float32]


def pixels(frame: NDArray[np.uint8], residual: NDArray[np.float32]) -> FramePixels:
    """What masks are measured on, from a frame (h, w, 3) RGB and its residual flow (h, w, 2)."""
    lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32)
    lab = (lab - 128) / 128
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
    return FramePixels(lab, colour_bins(hsv), residual)


def colour_bins(hsv: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bin of each pixel (h, w): 12 hues of 30 degrees, the first centred on red, then 4 greys from dark to light.

    A pixel is grey when its saturation is under 0.2 or its value under 0.16.
    """
    hue = (((hsv[..., 0].astype(np.uint16) * 2 + 15) % 360) // 30).astype(np.uint8)
    grey = (HUES + hsv[..., 2] // 64).astype(np.uint8)
    return np.where((hsv[..., 1] < 51) | (hsv[..., 2] < 41), grey, hue)


def measure(mask: NDArray[np.uint8], frame: FramePixels) -> NDArray[np.float64] | None:
    """The measurements (WIDTH,) of a mask (h, w) uint8 0/1 of `frame`, laid out as COLUMNS; None if it is empty."""
    x, y, w, h = cv2.boundingRect(mask)
    if w == 0 or h == 0:
        return None
    crop = np.ascontiguousarray(mask[y : y + h, x : x + w])
    moments = cv2.moments(crop, True)
    area = moments["m00"]
    cx, cy = moments["m10"] / area, moments["m01"] / area
    view = (slice(y, y + h), slice(x, x + w))
    mean, std = cv2.meanStdDev(frame.lab[view], mask=crop)
    shape, profile = outline(crop, moments, area, cx, cy)
    histogram = np.bincount(frame.palette[view][crop.astype(bool)], minlength=HUES + GREYS)[: HUES + GREYS] / area
    contrasts = contrast(frame.lab, mask, (x, y, w, h), mean[:, 0])
    parts = [[x + cx, y + cy], [x, y, x + w, y + h], [area], shape, profile, mean[:, 0], std[:, 0] * 4, contrasts, histogram]
    return np.concatenate([*parts, local_flow(frame.residual[view], crop, cx, cy)]).astype(np.float64)


def contrast(
    lab: NDArray[np.float32], mask: NDArray[np.uint8], box: tuple[int, int, int, int], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean Lab colour (3,) of the mask minus that of the surround: its box, enlarged by a quarter, without the mask."""
    x, y, w, h = box
    pad = 2 + max(w, h) // 4
    view = (slice(max(0, y - pad), y + h + pad), slice(max(0, x - pad), x + w + pad))
    surround = 1 - mask[view]
    if not surround.any():
        return np.zeros(3)
    surround_mean = cv2.mean(lab[view], mask=surround)[:3]
    return np.asarray(mean - surround_mean, np.float64)


def local_flow(field: NDArray[np.float32], crop: NDArray[np.uint8], cx: float, cy: float) -> NDArray[np.float64]:
    """Residual flow inside the mask (6,): mean x, mean y, std x, std y (pixels), divergence and curl (1/frame)."""
    mean, std = cv2.meanStdDev(field, mask=crop)
    ys, xs = np.nonzero(crop)
    moves = field[ys, xs] - mean[:, 0]
    dx, dy = xs - cx, ys - cy
    spread = float((dx * dx + dy * dy).sum()) + 1e-6
    divergence = float((dx * moves[:, 0] + dy * moves[:, 1]).sum()) / spread
    curl = float((dx * moves[:, 1] - dy * moves[:, 0]).sum()) / spread
    return np.array([mean[0, 0], mean[1, 0], std[0, 0], std[1, 0], divergence, curl])


def outline(
    crop: NDArray[np.uint8], moments: dict[str, float], area: float, cx: float, cy: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shape (7,) and radial profile (16,) of a mask cropped to its box; (cx, cy) is its centre in the crop.

    shape: log aspect ratio of the box; sine and cosine of twice the orientation, times the eccentricity; eccentricity; solidity;
    circularity; share of the box's pixels.
    """
    h, w = crop.shape
    a, b, c = moments["mu20"] / area, moments["mu11"] / area, moments["mu02"] / area
    theta = 0.5 * np.arctan2(2 * b, a - c)
    difference = np.hypot((a - c) / 2, b)
    small, large = max((a + c) / 2 - difference, 0), (a + c) / 2 + difference + 1e-6
    eccentricity = float(np.sqrt(1 - small / large)) if area > 4 else 0.0
    contours, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=len)
    hull = cv2.contourArea(cv2.convexHull(largest)) if len(largest) > 2 else 0.0
    contour_area = cv2.contourArea(largest) if len(largest) > 2 else 0.0
    perimeter = cv2.arcLength(largest, True)
    solidity = contour_area / hull if hull > 0 else 1.0
    circularity = min(4 * np.pi * contour_area / (perimeter * perimeter), 1.0) if perimeter > 0 else 1.0
    points = largest[:, 0].astype(float) - [cx, cy]
    radius = np.hypot(points[:, 0], points[:, 1])
    angle = ((np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) + 1) * PROFILE).astype(int) % PROFILE
    count = np.bincount(angle, minlength=PROFILE)
    profile = np.bincount(angle, radius, PROFILE) / np.maximum(count, 1)
    profile[count == 0] = radius.mean()
    profile = profile / (np.sqrt(area / np.pi) + 1e-6) - 1
    values = [
        np.log(w / h),
        eccentricity * np.sin(2 * theta),
        eccentricity * np.cos(2 * theta),
        eccentricity,
        solidity,
        circularity,
    ]
    return np.array([*values, area / (w * h)]), profile
