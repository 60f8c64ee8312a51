"""F, contour accuracy: F-measure of boundary pixels within a tolerance (Perazzi et al., DAVIS, CVPR 2016, section 5).

The definition is the benchmark code's (`db_eval_boundary`, used by DAVIS and MeViS): boundary pixels by `seg2bmap`, the
tolerance ceil(0.008 * diagonal) pixels, boundaries dilated by a disk x^2 + y^2 <= tolerance^2, precision and recall
counted on boundary pixels. A pixel is a boundary pixel when it differs from its right, lower or lower-right neighbour, so
an object has no contour at the image border, and a mask that fills the frame has no boundary at all.

Only the box around both masks is computed, one pixel wider because a boundary pixel depends on its right and lower
neighbours: every boundary pixel lies inside, and the dilation is read at boundary pixels alone. `silhouette` gives the same
numbers faster.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_select.metrics.region import Masks, check_pair

TOLERANCE = 0.008
"""Fraction of the image's diagonal (DAVIS' `bound_th`)."""


def f(prediction: Masks, truth: Masks) -> NDArray[np.float64]:
    """F of each frame, float64 (T,): 1 where neither mask has a boundary, 0 where only one has.

    Raises ValueError when frames or sizes differ.
    """
    check_pair(prediction, truth)
    frames = prediction.shape[1] if isinstance(prediction, RleMasks) else len(prediction)
    return np.array([frame_f(_frame(prediction, t), _frame(truth, t)) for t in range(frames)], np.float64)


def tolerance(size: tuple[int, int]) -> int:
    """Tolerance in pixels in a frame of `size` (H, W)."""
    return int(np.ceil(TOLERANCE * np.linalg.norm(size)))


def frame_f(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """F of one frame, both bool (H, W)."""
    height, width = prediction.shape
    radius = tolerance((height, width))
    box = _box(prediction, truth)
    if box is None:
        return 1.0
    predicted, true = boundary(prediction[box]), boundary(truth[box])
    count, truth_count = int(predicted.sum()), int(true.sum())
    if count == 0 and truth_count == 0:
        return 1.0
    if count == 0 or truth_count == 0:
        # In the benchmark's code precision is 1 and recall 0, or the reverse; F is 0 in both cases.
        return 0.0
    precision = int((_dilate(true, radius) & predicted).sum()) / count
    recall = int((_dilate(predicted, radius) & true).sum()) / truth_count
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Boundary pixels of a mask (H, W): those that differ from their right, lower or lower-right neighbour.

    In the last row only the right neighbour counts, in the last column only the lower one; the last pixel never.
    """
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def _dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Pixels within `radius` of a pixel of `mask`."""
    return np.asarray(cv2.dilate(mask.view(np.uint8), _disk(radius))).view(bool)


@lru_cache(maxsize=32)
def _disk(radius: int) -> NDArray[np.uint8]:
    """x^2 + y^2 <= radius^2 as 0 and 1, (2 radius + 1, 2 radius + 1)."""
    square = np.arange(-radius, radius + 1) ** 2
    return (square[:, None] + square[None] <= radius**2).astype(np.uint8)


def _box(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """The box around both masks, one pixel wider within the frame; None when both are empty."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(a | b).view(np.uint8))
    if width == 0:
        return None
    return slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)


def _frame(masks: Masks, t: int) -> NDArray[np.bool_]:
    if isinstance(masks, RleMasks):
        return masks.decode(0, t)
    return np.asarray(masks[t]).astype(bool)
