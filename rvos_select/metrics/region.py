"""J, region similarity: intersection over union per frame (Perazzi et al., DAVIS, CVPR 2016, section 5; used by MeViS too)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from rvos_cache.masks import RleMasks

Masks = RleMasks | NDArray[Any]
"""RleMasks (1, T) or pixels (T, H, W); anything but zero is foreground."""


def j(prediction: Masks, truth: Masks) -> NDArray[np.float64]:
    """J of each frame, float64 (T,): 1 where both masks are empty. Raises ValueError when frames or sizes differ."""
    check_pair(prediction, truth)
    if isinstance(prediction, RleMasks) and isinstance(truth, RleMasks):
        return _runs(prediction, truth)
    a, b = pixels(prediction), pixels(truth)
    inter = (a & b).sum(axis=(1, 2))
    union = (a | b).sum(axis=(1, 2))
    return np.where(union == 0, 1.0, inter / np.maximum(union, 1))


def _runs(prediction: RleMasks, truth: RleMasks) -> NDArray[np.float64]:
    """J without decoding. pycocotools does not define the IoU of two empty masks, so these frames are left out."""
    both_empty = (prediction.area()[0] == 0) & (truth.area()[0] == 0)
    iou = np.ones(len(both_empty))
    for t in np.flatnonzero(~both_empty).tolist():
        iou[t] = coco.iou([prediction.at(0, t)], [truth.at(0, t)], [0])[0, 0]
    return iou


def pixels(masks: Masks) -> NDArray[np.bool_]:
    """bool (T, H, W)."""
    if isinstance(masks, RleMasks):
        return masks.dense()[0]
    return np.asarray(masks).astype(bool)


def check_pair(prediction: Masks, truth: Masks) -> None:
    """Raises ValueError unless both are one mask over the same frames of the same size."""
    shapes = []
    for masks in (prediction, truth):
        if isinstance(masks, RleMasks):
            shapes.append((*masks.shape, *masks.size))
        else:
            shapes.append((1, *masks.shape))
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][0] != 1:
        raise ValueError(f"prediction (K, T, H, W) {shapes[0]}, truth {shapes[1]}: expected one mask each, same frames and size")
