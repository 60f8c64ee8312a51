"""Shared-pixel counts of tracks and annotated objects, and IoU, precision and recall from the counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks, shared_pixels
from rvos_cache.types import GroundTruth, Overlap


def count_overlap(tracks: RleMasks, truth: GroundTruth) -> Overlap:
    """Counts of tracks (N, T) and objects (A, T), in the RLE domain. Raises ValueError when frames or sizes differ."""
    n, t = tracks.shape
    a, truth_frames = truth.masks.shape
    if t != truth_frames or tracks.size != truth.masks.size:
        raise ValueError(f"tracks {t} frames of {tracks.size}, ground truth {truth_frames} of {truth.masks.size}")
    inter, area, gt_area = np.zeros((n, a, t), np.int32), np.zeros((n, t), np.int32), np.zeros((a, t), np.int32)
    for f in range(t):
        inter[:, :, f], area[:, f], gt_area[:, f] = shared_pixels(tracks.column(f), truth.masks.column(f), tracks.size)
    return Overlap(inter, area, gt_area, truth.annotated)


def iou(overlap: Overlap) -> NDArray[np.float64]:
    """|track ∩ object| / |track ∪ object| per frame, (N, A, T); both empty counts 1."""
    union = overlap.area[:, None] + overlap.gt_area[None] - overlap.inter
    return _ratio(overlap.inter, union, union == 0)


def precision(overlap: Overlap) -> NDArray[np.float64]:
    """|track ∩ object| / |track| per frame, (N, A, T); an empty track counts 1 (SOLA's released code)."""
    area = np.broadcast_to(overlap.area[:, None], overlap.inter.shape)
    return _ratio(overlap.inter, area, area == 0)


def recall(overlap: Overlap) -> NDArray[np.float64]:
    """|track ∩ object| / |object| per frame, (N, A, T); an absent object counts 1 (SOLA's released code)."""
    area = np.broadcast_to(overlap.gt_area[None], overlap.inter.shape)
    return _ratio(overlap.inter, area, area == 0)


def frame_mean(values: NDArray[np.float64], annotated: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over the annotated frames of (..., T); the mean of frames, not of pooled pixels. Raises ValueError if none is."""
    if not annotated.any():
        raise ValueError("no frame is annotated: there is nothing to average over")
    return values[..., annotated].mean(axis=-1)


def _ratio(count: NDArray[np.int32], total: NDArray[np.int32], one: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(one, 1.0, count / np.maximum(total, 1))
