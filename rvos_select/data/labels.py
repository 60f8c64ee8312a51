"""Overlap counts to labels: which tracks an expression means, for training and for the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.overlap import frame_mean, iou
from rvos_cache.plugins import resolve_function
from rvos_cache.types import Expression, Overlap

LabelRule = Callable[[Overlap, Sequence[Sequence[int]], float], NDArray[np.float32]]
"""(counts of N tracks, the objects of each of E expressions, threshold) -> float32 (E, N) in [0, 1], the targets of tracks."""


def mean_iou(overlap: Overlap) -> NDArray[np.float64]:
    """Mean over annotated frames of the per-frame IoU of each track with each object, (N, A)."""
    return frame_mean(iou(overlap), overlap.annotated)


def target_indices(expression: Expression, object_ids: Sequence[str] | None) -> list[int]:
    """Positions of the expression's objects. Raises InputError when they are hidden or not annotated: never a negative."""
    if expression.targets is None or object_ids is None:
        raise InputError(f"expression {expression.key}: its split hides its ground truth; labels need a split that has it")
    position = {o: i for i, o in enumerate(object_ids)}
    missing = [t for t in expression.targets if t not in position]
    if missing:
        raise InputError(f"expression {expression.key}: names object {missing[0]}, which its video has no masks of")
    return [position[t] for t in expression.targets]


def max_iou(overlap: Overlap, objects: Sequence[Sequence[int]], threshold: float) -> NDArray[np.float32]:
    """1 where the largest mean IoU over the expression's objects is above `threshold` (strict); no object: zeros.

    SOLA section 3.6.
    """
    quality = mean_iou(overlap)
    rows = [track_targets(quality, own, threshold) for own in objects]
    return np.stack(rows) if rows else np.zeros((0, len(quality)), np.float32)


LABEL_RULES = {"max_iou": "rvos_select.data.labels:max_iou"}


def label_rule(name: str) -> LabelRule:
    """The rule `name` (a name in LABEL_RULES or "package.module:function"). Raises InputError for what is no rule."""
    return resolve_function(LABEL_RULES, name, "label rule", ("overlap", "objects", "threshold"))


def track_targets(quality: NDArray[np.float64], objects: Sequence[int], threshold: float) -> NDArray[np.float32]:
    """float32 (N,): `max_iou` of one expression. quality: (N, A) of `mean_iou`."""
    if not objects:
        return np.zeros(len(quality), np.float32)
    return (quality[:, list(objects)].max(axis=1) > threshold).astype(np.float32)


def oracle_tracks(quality: NDArray[np.float64], objects: Sequence[int], candidate: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool (N,): for each object its best candidate by mean IoU. No object or no candidate: none.

    The score of perfect labels, not the maximum over subsets of tracks.
    """
    chosen = np.zeros(len(quality), bool)
    if candidate.any():
        for a in objects:
            chosen[np.argmax(np.where(candidate, quality[:, a], -1.0))] = True
    return chosen
