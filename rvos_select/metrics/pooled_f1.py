"""The F that SOLA's own evaluation code prints for `valid_u`: an F1 of pixels, pooled over the frames of a video.

It is neither the contour accuracy F of the benchmarks nor comparable with it: the paper's table is scored by MeViS's server.
Source: SOLA's released `evaluator.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvos_select.metrics.metric import Field, FrameMetric
from rvos_select.metrics.silhouette import Silhouette, shared_area


class PooledF1(FrameMetric):
    """2 TP / (2 TP + FP + FN) over the pixels of all annotated frames of an expression; 0 where both masks are empty."""

    fields = item_fields = (Field("pooled_f1", "F1 (SOLA)"),)
    width = 2

    def frame(self, prediction: Silhouette, truth: Silhouette) -> tuple[float, float]:
        """Shared pixels, and pixels of both masks together."""
        return float(shared_area(prediction, truth)), float(prediction.area + truth.area)

    def item(self, frames: NDArray[np.float64], targets: int | None) -> tuple[float]:
        """The F1 of the summed pixels. frames: (T, 2)."""
        shared, both = frames.sum(axis=0).tolist()
        return (2 * shared / both if both else 0.0,)
