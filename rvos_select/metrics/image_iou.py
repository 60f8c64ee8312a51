"""Overall IoU, mean IoU and P@K of the mask with the highest score, as MTTR's `metrics.py` computes them.

ReferFormer and ReferDINO copied that code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rvos_select.metrics.detections import Detections
from rvos_select.metrics.metric import Field, SampleMetric

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


class OverallIou(SampleMetric[tuple[int, int, float]]):
    """Shared pixels of all samples over pixels of all unions. An item is (shared pixels, pixels of the union, IoU)."""

    fields = (Field("overall_iou", "overall IoU"),)
    in_slices = False

    def item(self, sample: Detections) -> tuple[int, int, float]:
        """The counts of the best mask."""
        return (*sample.best_counts, sample.best_iou)

    def missing(self, truth: int | None) -> tuple[int, int, float]:
        """Nothing is shared."""
        return 0, truth or 0, 0.0

    def combine(self, items: Mapping[str, tuple[int, int, float]]) -> dict[str, Any]:
        """Where no sample has a pixel, true or predicted, MTTR divides by zero; here it is the mean IoU."""
        inter, union = (sum(item[i] for item in items.values()) for i in (0, 1))
        iou = np.array([item[2] for item in items.values()], np.float64)
        return {"overall_iou": inter / union if union else float(iou.mean())}


class MeanIou(SampleMetric[tuple[float]]):
    """Mean over the samples of the IoU of the best mask."""

    fields = (Field("mean_iou", "mean IoU"),)
    item_fields = (Field("iou", "mean IoU"),)

    def item(self, sample: Detections) -> tuple[float]:
        """IoU of the best mask."""
        return (sample.best_iou,)

    def missing(self, truth: int | None) -> tuple[float]:
        """IoU 0."""
        return (0.0,)

    def combine(self, items: Mapping[str, tuple[float]]) -> dict[str, Any]:
        """The mean."""
        return {"mean_iou": float(np.array([iou for (iou,) in items.values()], np.float64).mean())}


class PrecisionAtIou(SampleMetric[float]):
    """P@K: the share of samples whose best mask has an IoU above K. An item is the IoU."""

    fields = tuple(Field("precision", f"P@{k}", str(k)) for k in PRECISION_AT)
    in_slices = False

    def item(self, sample: Detections) -> float:
        """IoU of the best mask."""
        return sample.best_iou

    def missing(self, truth: int | None) -> float:
        """IoU 0."""
        return 0.0

    def combine(self, items: Mapping[str, float]) -> dict[str, Any]:
        """{"precision": {"0.5": …}}."""
        iou = np.array(list(items.values()), np.float64)
        return {"precision": {str(k): float((iou > k).mean()) for k in PRECISION_AT}}
