"""mAP of scored masks: COCO's over IoU 0.50:0.05:0.95 (`COCOeval`, segm, useCats=0; Lin et al., ECCV 2014)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rvos_select.metrics.detections import Detections
from rvos_select.metrics.metric import Field, SampleMetric

MapMode = Literal["all-queries", "top1"]
"""Which masks mAP counts: all of a selector with their scores (the published numbers), or the best alone, which is lower."""
Ranked = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Scores and IoU of the masks of one sample, both (Q,), highest score first."""

MAX_MASKS = 100
"""Masks of a sample that mAP counts, highest scores first (COCO's `maxDets`)."""
# COCO's own expressions: 0.95 and the recalls must be its very floats.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.00, 101)


@dataclass(frozen=True)
class AveragePrecision(SampleMetric[Ranked]):
    """COCO's mean average precision of the masks of all samples together."""

    mode: MapMode = "all-queries"

    fields = (Field("map", "mAP"),)
    in_slices = False

    def with_options(self, options: Mapping[str, Any]) -> AveragePrecision:
        """With `options["map_mode"]`, where it is given."""
        return replace(self, mode=options.get("map_mode", self.mode))

    def item(self, sample: Detections) -> Ranked:
        """The masks that count. An empty union has IoU 0, as in COCO's code, so an empty truth is never detected."""
        counted = np.argsort(-sample.scores, kind="stable")[:MAX_MASKS]
        if self.mode == "top1":
            counted = counted[:0] if sample.best is None else np.array([sample.best])
        iou = sample.inter[counted] / np.maximum(sample.union[counted], 1)
        return sample.scores[counted].astype(np.float64), iou

    def missing(self, truth: int | None) -> Ranked:
        """No mask."""
        return np.zeros(0), np.zeros(0)

    def combine(self, items: Mapping[str, Ranked]) -> dict[str, Any]:
        """{"map", "map_mode"}. Where scores are equal across samples, mAP depends on their order: it is that of the keys, as
        COCO's is that of the image ids."""
        return {"map": mean_average_precision([items[key] for key in sorted(items)]), "map_mode": self.mode}


def mean_average_precision(ranked: list[Ranked]) -> float:
    """COCO's mAP of samples with one true mask each.

    Of a sample's masks the first whose IoU reaches the threshold is right, all others are wrong. The precision at each of
    101 recalls is the highest at that recall or above, and 0 where it is not reached; the mean is over recalls and thresholds.
    """
    scores = np.concatenate([s for s, _ in ranked])
    hits = [iou[:, None] >= IOU_THRESHOLDS for _, iou in ranked]
    right = np.concatenate([hit & (np.cumsum(hit, axis=0) == 1) for hit in hits])[np.argsort(-scores, kind="stable")]
    if not len(right):
        return 0.0
    true_positives = np.cumsum(right, axis=0)
    recall = true_positives / len(ranked)
    precision = true_positives / (np.arange(1, len(right) + 1)[:, None] + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    rows_at_recalls = [np.searchsorted(recall[:, i], RECALLS, side="left") for i in range(len(IOU_THRESHOLDS))]
    padded = np.concatenate([envelope, np.zeros((1, len(IOU_THRESHOLDS)))])
    return float(np.mean([padded[rows, i] for i, rows in enumerate(rows_at_recalls)]))
