"""N-acc and T-acc: whether an expression without target has an empty prediction, and one with targets has pixels (MeViSv2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_select.metrics.metric import Field, FrameMetric
from rvos_select.metrics.silhouette import Silhouette

NOT_APPLICABLE = math.nan


class NoTargetAccuracy(FrameMetric):
    """N-acc: the share of the expressions without target whose prediction has no pixel in any annotated frame. T-acc: the share
    of the others, where there are any, whose prediction has one. A missing prediction is right in neither.

    An item is (N-acc, T-acc), of which one applies; neither where the number of targets is not known.
    """

    fields = (Field("n_acc", "N-acc"), Field("t_acc", "T-acc"))
    width = 1
    in_slices = False

    def frame(self, prediction: Silhouette, truth: Silhouette) -> tuple[float]:
        """1 where the prediction has a pixel."""
        return (float(prediction.area > 0),)

    def item(self, frames: NDArray[np.float64], targets: int | None) -> tuple[float, float]:
        """Whether the prediction is rightly empty, or rightly not."""
        has_pixels = float(frames.max())
        return _applied(targets, 1.0 - has_pixels, has_pixels)

    def missing(self, truth: int | None) -> tuple[float, float]:
        """0 in the one that applies."""
        return _applied(truth, 0.0, 0.0)

    def combine(self, items: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        """Means over the items to which each applies; nothing where no expression is known to have no target."""
        known = [[item[i] for item in items.values() if not math.isnan(item[i])] for i in range(2)]
        if not known[0]:
            return {}
        return {field.key: sum(values) / len(values) for field, values in zip(self.fields, known) if values}


def _applied(targets: int | None, n_acc: float, t_acc: float) -> tuple[float, float]:
    """(N-acc, T-acc) of an expression with that many targets."""
    if targets is None:
        return NOT_APPLICABLE, NOT_APPLICABLE
    return (NOT_APPLICABLE, t_acc) if targets else (n_acc, NOT_APPLICABLE)
