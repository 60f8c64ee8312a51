"""Overlap counts to labels: which tracks an expression means, as training and the oracle see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.overlap import frame_mean, iou
from rvos_cache.types import Expression, Overlap


def mean_iou(overlap: Overlap) -> NDArray[np.float64]:
    """Mean over annotated frames of the per-frame IoU of each track with each object, (N, A)."""
    return frame_mean(iou(overlap), overlap.annotated)


def target_indices(expression: Expression, object_ids: Sequence[str] | None) -> list[int]:
    """Positions of the expression's objects. Raises InputError when they are hidden or not annotated: never a negative."""
    if expression.targets is None or object_ids is None:
        raise InputError(f"expression {expression.key}: its answers are hidden; labels need a split that shows them")
    position = {o: i for i, o in enumerate(object_ids)}
    lost = [t for t in expression.targets if t not in position]
    if lost:
        raise InputError(f"expression {expression.key}: names object {lost[0]}, which its video has no masks of")
    return [position[t] for t in expression.targets]


def track_targets(quality: NDArray[np.float64], targets: Sequence[int], threshold: float) -> NDArray[np.float32]:
    """float32 (N,): 1 where the largest mean IoU over the expression's objects is above `threshold` (strict).

    quality: (N, A) of `mean_iou`; no target: all zeros. SOLA section 3.6.
    """
    if not targets:
        return np.zeros(len(quality), np.float32)
    return (quality[:, list(targets)].max(axis=1) > threshold).astype(np.float32)


def oracle_tracks(quality: NDArray[np.float64], targets: Sequence[int], candidate: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool (N,): for each target object its best candidate by mean IoU. No target or no candidate: none.

    The score of perfect labels, not the maximum over subsets of tracks.
    """
    chosen = np.zeros(len(quality), bool)
    if candidate.any():
        for a in targets:
            chosen[np.argmax(np.where(candidate, quality[:, a], -1.0))] = True
    return chosen
