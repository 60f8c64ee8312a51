"""Mode "small": flat-coloured regions as prompts, and the colour classes that they share over the whole video.

Letters: T frames, h w pixels, K colour classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CLASS_RADIUS = 11.0
"""Lab distance within which a pixel belongs to a colour class (JPEG at quality 75 spreads flat areas by 3 to 6)."""
FLAT_RANGE = 9.0
"""Largest range of a Lab channel over 3x3 pixels of a flat area, with JPEG artefacts."""


@dataclass(frozen=True, eq=False)
class Region:
    """A region proposal in one frame: mask bool (h, w), median Lab colour (3,), score (higher is more similar to an object)."""

    mask: NDArray[np.bool_]
    colour: NDArray[np.float32]
    score: float
    frame: int


def lab_of(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIE Lab (h, w, 3) of an RGB frame, L halved (0..50), because light and shade on one object change L most."""
    smooth = cv2.GaussianBlur(frame, (3, 3), 0.6).astype(np.float32) / 255
    lab = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB)
    lab[..., 0] *= 0.5
    return np.asarray(lab, np.float32)


def flat_regions(lab: NDArray[np.float32], t: int) -> list[Region]:
    """Flat areas that contrast with their surround; their colours become the colour classes."""
    h, w = lab.shape[:2]
    kernel = np.ones((3, 3), np.uint8)
    spread = (cv2.dilate(lab, kernel) - cv2.erode(lab, kernel)).max(2)
    pieces, labels, stats, _ = cv2.connectedComponentsWithStats((spread < FLAT_RANGE).astype(np.uint8), connectivity=4)
    regions = []
    for piece in range(1, pieces):
        if 6 <= stats[piece, cv2.CC_STAT_AREA] <= 0.25 * h * w:
            # An area is flat up to a pixel from its edge.
            region = region_of(cv2.dilate((labels == piece).astype(np.uint8), kernel).astype(bool), lab, t)
            if region is not None:
                regions.append(region)
    return regions


def proposals(classes: NDArray[np.int8], lab: NDArray[np.float32], count: int, t: int) -> list[Region]:
    """Connected components of the `count` colour classes in frame t that are similar to objects, best score first."""
    out = []
    for colour_class in range(count):
        byte = (classes == colour_class).astype(np.uint8)
        pieces, labels, stats, _ = cv2.connectedComponentsWithStats(byte, connectivity=4)
        for piece in range(1, pieces):
            if 20 <= stats[piece, cv2.CC_STAT_AREA] <= 0.25 * classes.size:
                region = region_of(labels == piece, lab, t)
                if region is not None:
                    out.append(region)
    return sorted(out, key=lambda r: -r.score)


def region_of(mask: NDArray[np.bool_], lab: NDArray[np.float32], t: int) -> Region | None:
    """The region of a mask if its colour is uniform, its outline simple and its surround different; else None."""
    h, w = mask.shape
    area = int(mask.sum())
    byte = mask.astype(np.uint8)
    core = cv2.erode(byte, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    inside = core.astype(bool) if core.sum() >= 12 else mask
    colour = np.median(lab[inside], axis=0).astype(np.float32)
    deviation = float(np.median(np.linalg.norm(lab[inside] - colour, axis=1)))
    ring = (cv2.dilate(byte, np.ones((7, 7), np.uint8)) - cv2.dilate(byte, np.ones((3, 3), np.uint8))).astype(bool)
    if deviation > 6 or not ring.any():
        return None
    difference = np.linalg.norm(lab[ring] - colour, axis=1)
    contrast = float((difference > 1.3 * CLASS_RADIUS).mean())
    contours, _ = cv2.findContours(byte, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)
    hull = cv2.contourArea(cv2.convexHull(largest))
    solidity = min(area / (hull + 1), 1.0)
    x, y, bw, bh = cv2.boundingRect(byte)
    sides = (x == 0) + (y == 0) + (x + bw == w) + (y + bh == h)
    if contrast < 0.6 or solidity < 0.5 or sides > 2 or min(bw, bh) < 4:
        return None
    interior = float(inside.sum() / area)
    score = contrast + solidity + min(float(np.median(difference)) / 40, 1.0) - deviation / 6 + 0.5 * interior - 0.3 * sides
    return Region(mask, colour, score, t)


def colour_classes(regions: Sequence[Region]) -> NDArray[np.float32]:
    """Colours (K, 3), at least 0.8 class radii apart, that represent the colours of all regions; best regions first."""
    colours: list[NDArray[np.float32]] = []
    for region in sorted(regions, key=lambda r: -r.score):
        if all(np.linalg.norm(region.colour - c) > 0.8 * CLASS_RADIUS for c in colours):
            colours.append(region.colour)
    return np.stack(colours) if colours else np.zeros((0, 3), np.float32)


def classify(lab: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.int8]:
    """Nearest colour class of every pixel (h, w), -1 where none is within the class radius."""
    if not len(colours):
        return np.full(lab.shape[:2], -1, np.int8)
    # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, so that all classes cost one matrix product.
    flat = lab.reshape(-1, 3)
    distance = (colours**2).sum(1) - 2 * flat @ colours.T
    best = distance.argmin(1)
    near = distance[np.arange(len(flat)), best] + (flat**2).sum(1) < CLASS_RADIUS**2
    return np.where(near, best, -1).astype(np.int8).reshape(lab.shape[:2])


def fill_rim(core: NDArray[np.bool_], lab: NDArray[np.float32], colour: NDArray[np.float32]) -> NDArray[np.bool_]:
    """`core` (h, w) with holes closed, and the pixels of its rim that are nearer to `colour` than to the surround.

    Chroma subsampling and anti-aliasing leave a rim of one or two pixels beyond the class radius.
    """
    byte = core.astype(np.uint8)
    x, y, w, h = cv2.boundingRect(byte)
    if w == 0:
        return core
    y0, x0 = max(0, y - 6), max(0, x - 6)
    view = (slice(y0, y + h + 6), slice(x0, x + w + 6))
    crop = cv2.morphologyEx(np.ascontiguousarray(byte[view]), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    near = cv2.dilate(crop, np.ones((5, 5), np.uint8))
    outside = 1 - cv2.dilate(crop, np.ones((7, 7), np.uint8))
    local = lab[view]
    count = cv2.blur(outside.astype(np.float32), (13, 13))
    surround = cv2.blur(local * outside[..., None], (13, 13)) / np.maximum(count, 1e-3)[..., None]
    to_colour = np.linalg.norm(local - colour, axis=-1)
    to_surround = np.linalg.norm(local - surround, axis=-1)
    rim = (near > 0) & (crop == 0) & (to_colour < to_surround) & (count > 1e-3)
    out = core.copy()
    out[view] = (crop > 0) | rim
    return out
