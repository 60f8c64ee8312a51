"""Scores of single frames, as A2D-Sentences, JHMDB-Sentences and RefCOCO are scored: mAP, overall IoU, mean IoU, P@0.5 to P@0.9.

A sample is one expression in one annotated frame, with one true mask and a selector's masks with their scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rvos_cache.errors import InputError
from rvos_select.metrics.average_precision import MapMode
from rvos_select.metrics.detections import Detections
from rvos_select.metrics.metric import SampleMetric
from rvos_select.metrics.scores import Scores
from rvos_select.metrics.slices import Facts
from rvos_select.metrics.table import METRICS

__all__ = ["Detections", "ImageScores", "MapMode"]


class ImageScores(Scores):
    """Scores of samples by key, the benchmark's image id."""

    metrics: tuple[SampleMetric[Any], ...]

    def __init__(self, map_mode: MapMode = "all-queries") -> None:
        super().__init__(metric.with_options({"map_mode": map_mode}) for metric in METRICS["image"])

    def add(self, key: str, sample: Detections, facts: Facts | None = None) -> None:
        """One sample. Without masks its prediction is empty. Raises ValueError for a key that was added before."""
        self.add_item(key, [metric.item(sample) for metric in self.metrics], facts)

    def add_missing(self, key: str, truth: int, facts: Facts | None = None) -> None:
        """A sample without prediction: it scores 0, whatever its `truth` (pixels), and is listed."""
        self.add_missing_item(key, truth, facts)

    def table(self, expressions: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """{"map", "map_mode", "overall_iou", "mean_iou", "precision": {"0.5": …}, "samples": {key: IoU}} in fractions of 1.

        "missing" where there are any; "slices": {attribute: {slice: {"mean_iou", "count"}}} where anything is known.
        expressions: "<video>/<expression>" -> its samples, for "expressions": {key: {"iou", "count"}}, means over the samples and
        their number. Raises InputError when there is no sample.
        """
        if not self.items:
            raise InputError("there is no sample to score; check --split, --video and --limit")
        numbers = {key: self.numbers(key) for key in self.items}
        table = {**self.means(), "samples": {key: of_sample["iou"] for key, of_sample in numbers.items()}}
        if expressions is not None:
            table["expressions"] = {
                expression: {name: float(np.mean([numbers[key][name] for key in keys])) for name in numbers[keys[0]]}
                | {"count": len(keys)}
                for expression, keys in expressions.items()
            }
        if self.missing:
            table["missing"] = self.missing
        return table | self.slices()
