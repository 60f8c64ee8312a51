"""Small frames: flat-coloured regions as prompts, and the colour classes they share over the whole video.

Letters: T frames, h w pixels, K colour classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CLASS_RADIUS = 11.0
"""Lab distance within which a pixel belongs to a colour class (8-bit JPEG at quality 75 spreads flat areas by 3 to 6)."""


EVEN = 9.0
"""Range of a Lab channel over 3x3 pixels of an even area: what JPEG leaves in one."""


@dataclass(frozen=True, eq=False)
class Region:
    """A proposed region: mask bool (h, w), mean Lab colour (3,), score (higher is more object-like), frame."""

    mask: NDArray[np.bool_]
    colour: NDArray[np.float32]
    score: float
    frame: int


def lab_of(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """CIE Lab (h, w, 3) of an RGB frame, L halved (0..50): light and shade on one object move L most."""
    smooth = cv2.GaussianBlur(frame, (3, 3), 0.6).astype(np.float32) / 255
    lab = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB)
    lab[..., 0] *= 0.5
    return np.asarray(lab, np.float32)


def find_colours(lab: NDArray[np.float32], t: int) -> list[Region]:
    """Areas of even colour that stand out from what lies around them: where the colour classes come from."""
    h, w = lab.shape[:2]
    kernel = np.ones((3, 3), np.uint8)
    spread = (cv2.dilate(lab, kernel) - cv2.erode(lab, kernel)).max(2)
    pieces, labels, stats, _ = cv2.connectedComponentsWithStats((spread < EVEN).astype(np.uint8), connectivity=4)
    found = []
    for piece in range(1, pieces):
        if 6 <= stats[piece, cv2.CC_STAT_AREA] <= 0.25 * h * w:
            # an area is even up to a pixel from its edge
            region = judge(cv2.dilate((labels == piece).astype(np.uint8), kernel).astype(bool), lab, t)
            if region is not None:
                found.append(region)
    return found


def prompts(kinds: NDArray[np.int8], lab: NDArray[np.float32], count: int, t: int) -> list[Region]:
    """Connected pieces of the colour classes in one frame that look like objects, best first."""
    out = []
    for kind in range(count):
        byte = (kinds == kind).astype(np.uint8)
        pieces, labels, stats, _ = cv2.connectedComponentsWithStats(byte, connectivity=4)
        for piece in range(1, pieces):
            if 20 <= stats[piece, cv2.CC_STAT_AREA] <= 0.25 * kinds.size:
                region = judge(labels == piece, lab, t)
                if region is not None:
                    out.append(region)
    return sorted(out, key=lambda r: -r.score)


def judge(mask: NDArray[np.bool_], lab: NDArray[np.float32], t: int) -> Region | None:
    """The region when its inside is even, its outline plain and its surround different; else None."""
    h, w = mask.shape
    area = int(mask.sum())
    byte = mask.astype(np.uint8)
    core = cv2.erode(byte, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    inside = core.astype(bool) if core.sum() >= 12 else mask
    colour = np.median(lab[inside], axis=0).astype(np.float32)
    even = float(np.median(np.linalg.norm(lab[inside] - colour, axis=1)))
    ring = (cv2.dilate(byte, np.ones((7, 7), np.uint8)) - cv2.dilate(byte, np.ones((3, 3), np.uint8))).astype(bool)
    if even > 6 or not ring.any():
        return None
    away = np.linalg.norm(lab[ring] - colour, axis=1)
    stand_out = float((away > 1.3 * CLASS_RADIUS).mean())
    contours, _ = cv2.findContours(byte, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)
    hull = cv2.contourArea(cv2.convexHull(largest))
    solid = min(area / (hull + 1), 1.0)
    x, y, bw, bh = cv2.boundingRect(byte)
    sides = (x == 0) + (y == 0) + (x + bw == w) + (y + bh == h)
    if stand_out < 0.6 or solid < 0.5 or sides > 2 or min(bw, bh) < 4:
        return None
    thick = float(inside.sum() / area)
    score = stand_out + solid + min(float(np.median(away)) / 40, 1.0) - even / 6 + 0.5 * thick - 0.3 * sides
    return Region(mask, colour, score, t)


def colour_classes(regions: Sequence[Region]) -> NDArray[np.float32]:
    """Colours (K, 3) such that every region's colour is within half a class radius of one; the best regions first."""
    found: list[NDArray[np.float32]] = []
    for region in sorted(regions, key=lambda r: -r.score):
        if all(np.linalg.norm(region.colour - c) > 0.8 * CLASS_RADIUS for c in found):
            found.append(region.colour)
    return np.stack(found) if found else np.zeros((0, 3), np.float32)


def classify(lab: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.int8]:
    """Nearest colour class of every pixel (h, w), -1 where none is within the class radius."""
    if not len(colours):
        return np.full(lab.shape[:2], -1, np.int8)
    # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, so that all classes cost one matrix product.
    flat = lab.reshape(-1, 3)
    away = (colours**2).sum(1) - 2 * flat @ colours.T
    best = away.argmin(1)
    near = away[np.arange(len(flat)), best] + (flat**2).sum(1) < CLASS_RADIUS**2
    return np.where(near, best, -1).astype(np.int8).reshape(lab.shape[:2])


def fill_rim(core: NDArray[np.bool_], lab: NDArray[np.float32], colour: NDArray[np.float32]) -> NDArray[np.bool_]:
    """`core` with holes closed and the mixed pixels at its rim that are nearer to `colour` than to the surround.

    Chroma subsampling and anti-aliasing leave a rim of one or two pixels outside the class radius.
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
    around = cv2.blur(local * outside[..., None], (13, 13)) / np.maximum(count, 1e-3)[..., None]
    mine = np.linalg.norm(local - colour, axis=-1)
    theirs = np.linalg.norm(local - around, axis=-1)
    rim = (near > 0) & (crop == 0) & (mine < theirs) & (count > 1e-3)
    out = core.copy()
    out[view] = (crop > 0) | rim
    return out
