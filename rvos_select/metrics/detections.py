"""The masks of one sample, an expression in one frame, as pixel counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks, intersections

SMOOTHING = 1e-6


@dataclass(frozen=True)
class Detections:
    """The masks of one sample as pixel counts. Raises ValueError when the parts do not fit together.

    scores: floating (Q,); inter: (Q,) pixels shared with the truth; area: (Q,); truth: pixels of the true mask. With a
    cache, `Overlap` holds all of them: inter[:, a, t], area[:, t], gt_area[a, t]. Q = 0: the prediction is empty.
    """

    scores: NDArray[np.floating[Any]]
    inter: NDArray[np.integer[Any]]
    area: NDArray[np.integer[Any]]
    truth: int

    def __post_init__(self) -> None:
        shapes = {np.shape(self.scores), np.shape(self.inter), np.shape(self.area)}
        if len(shapes) != 1 or np.ndim(self.scores) != 1:
            raise ValueError(f"Detections: scores, inter, area must be one length (Q,), are {sorted(shapes)}")
        if not np.isfinite(self.scores).all():
            raise ValueError("Detections.scores hold NaN or infinite values")
        if (self.inter < 0).any() or (self.inter > np.minimum(self.area, self.truth)).any():
            raise ValueError("Detections: more shared pixels than the masks have")

    @classmethod
    def count(cls, masks: RleMasks, scores: NDArray[np.floating[Any]], truth: RleMasks, t: int = 0) -> Detections:
        """The masks (Q, T) against the truth (1, T) in frame t. Raises ValueError when frames or sizes differ."""
        if truth.shape != (1, masks.shape[1]) or truth.size != masks.size:
            raise ValueError(f"masks {masks.shape} {masks.size}, truth {truth.shape} {truth.size}: expected (Q, T) and (1, T)")
        one = masks.frames(t, t + 1), truth.frames(t, t + 1)
        inter = intersections(one[0].column(0), one[1].column(0))[:, 0]
        return cls(scores, inter, one[0].area()[:, 0], int(one[1].area()[0, 0]))

    @property
    def union(self) -> NDArray[np.int64]:
        """Pixels of mask or truth, (Q,)."""
        return self.area.astype(np.int64) + self.truth - self.inter

    @cached_property
    def best(self) -> int | None:
        """Index of the mask with the highest score, the last of equal ones as in MTTR; None without masks."""
        return len(self.scores) - 1 - int(np.argmax(self.scores[::-1])) if len(self.scores) else None

    @cached_property
    def best_counts(self) -> tuple[int, int]:
        """Pixels shared with the truth and pixels of the union, of the best mask; without masks those of an empty one."""
        return (0, self.truth) if self.best is None else (int(self.inter[self.best]), int(self.union[self.best]))

    @cached_property
    def best_iou(self) -> float:
        """IoU of the best mask, see `smooth_iou`."""
        return smooth_iou(*self.best_counts)


def smooth_iou(inter: int, union: int) -> float:
    """(inter + 1e-6) / (union + 1e-6), 1 when both are empty.

    In single precision as MTTR computes it: there an IoU of 1/2 is not above 0.5 but 3/5 is above 0.6 (as doubles).
    """
    return float((np.float32(inter) + np.float32(SMOOTHING)) / (np.float32(union) + np.float32(SMOOTHING)))
