"""F, contour accuracy: F-measure of boundary pixels within a tolerance (Perazzi et al., DAVIS, CVPR 2016, section 5).

The definition is the benchmark code's (`db_eval_boundary`, used by DAVIS and MeViS): boundary pixels by `seg2bmap`, the
tolerance ceil(0.008 * diagonal) pixels, boundaries dilated by a disk x^2 + y^2 <= tolerance^2, precision and recall
counted on boundary pixels. A pixel is a boundary pixel when it differs from its right, lower or lower-right neighbour, so
an object's contour at the image border is none, and a mask that fills the frame has no boundary at all.

The same numbers come here faster: only the box around both masks is looked at, one pixel wider because a pixel's
membership reads its right and lower neighbours (every boundary pixel lies inside, and dilation is only asked for at
boundary pixels), and the box is dilated, not the frame.
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
    """F of each frame, (T,); neither has a boundary: 1; only one has: 0. Raises ValueError when frames or sizes differ."""
    check_pair(prediction, truth)
    frames = prediction.shape[1] if isinstance(prediction, RleMasks) else len(prediction)
    return np.array([frame_f(_frame(prediction, t), _frame(truth, t)) for t in range(frames)], np.float64)


def tolerance(size: tuple[int, int]) -> int:
    """Pixels that boundaries may lie apart in a frame of `size` (H, W)."""
    return int(np.ceil(TOLERANCE * np.linalg.norm(size)))


def frame_f(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """F of one frame, both bool (H, W)."""
    height, width = prediction.shape
    reach = tolerance((height, width))
    box = _box(prediction, truth)
    if box is None:
        return 1.0
    ours, theirs = boundary(prediction[box]), boundary(truth[box])
    count, truth_count = int(ours.sum()), int(theirs.sum())
    if count == 0 and truth_count == 0:
        return 1.0
    if count == 0 or truth_count == 0:
        # The code's rule: precision 1 and recall 0, or the other way round; their F is 0 either way.
        return 0.0
    precision = int((_dilate(theirs, reach) & ours).sum()) / count
    recall = int((_dilate(ours, reach) & theirs).sum()) / truth_count
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Boundary pixels of a mask (H, W): those that differ from their right, lower or lower-right neighbour.

    In the last row only the right neighbour counts, in the last column only the lower one; the last pixel never.
    """
    out = np.zeros(mask.shape, bool)
    out[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    out[:-1] |= mask[:-1] ^ mask[1:]
    out[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return out


def _dilate(points: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Pixels within `reach` of one of `points`."""
    return np.asarray(cv2.dilate(points.view(np.uint8), _disk(reach))).view(bool)


@lru_cache(maxsize=32)
def _disk(reach: int) -> NDArray[np.uint8]:
    """x^2 + y^2 <= reach^2 as 0 and 1, (2 reach + 1, 2 reach + 1)."""
    square = np.arange(-reach, reach + 1) ** 2
    return (square[:, None] + square[None] <= reach**2).astype(np.uint8)


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
