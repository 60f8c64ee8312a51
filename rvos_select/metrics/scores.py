"""Scores of many items by several metrics: numbers of each item, their combination, and that of each slice and kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_select.metrics.metric import FrameMetric, FrameMetrics, Metric
from rvos_select.metrics.region_contour import REGION_CONTOUR
from rvos_select.metrics.slices import Facts, slice_keys
from rvos_select.metrics.table import METRICS


def score(prediction: RleMasks, truth: RleMasks, annotated: NDArray[np.bool_]) -> tuple[float, float]:
    """J and F of one expression: the means over its annotated frames. prediction, truth: (1, T); annotated: bool (T,).

    Raises InputError when no frame is annotated, ValueError when frames or sizes differ.
    """
    ((region, contour),) = FrameMetrics([REGION_CONTOUR]).score(prediction, truth, annotated)
    return region, contour


class Scores:
    """Items by key, added one by one, and what is known of each; no masks are kept.

    metrics: of one protocol; items: key -> its item by each metric; missing: keys of missing predictions.
    """

    def __init__(self, metrics: Iterable[Metric[Any]]) -> None:
        self.metrics = tuple(metrics)
        self.items: dict[str, Sequence[Any]] = {}
        self.facts: dict[str, Facts | None] = {}
        self.missing: list[str] = []

    def add_item(self, key: str, values: Sequence[Any], facts: Facts | None = None) -> None:
        """One item. values: by each metric; facts: for the slices, None: nothing is known.

        Raises ValueError for a key that was added before.
        """
        if key in self.items:
            raise ValueError(f"{key} was added twice")
        self.items[key], self.facts[key] = values, facts

    def add_missing_item(self, key: str, truth: int | None, facts: Facts | None = None) -> None:
        """An item whose prediction is missing. truth: as in `Metric.missing`."""
        self.add_item(key, [metric.missing(truth) for metric in self.metrics], facts)
        self.missing.append(key)

    def means(self, keys: Sequence[str] | None = None, of_slice: bool = False) -> dict[str, Any]:
        """The fields of all metrics over the items `keys`, one or more (None: all); of_slice: of those in slices alone."""
        keys = list(self.items) if keys is None else keys
        means: dict[str, Any] = {}
        for i, metric in enumerate(self.metrics):
            if metric.in_slices or not of_slice:
                means |= metric.combine({key: self.items[key][i] for key in keys})
        return means

    def numbers(self, key: str) -> dict[str, float]:
        """The numbers of one item that results keep."""
        return {
            field.key: number
            for metric, values in zip(self.metrics, self.items[key])
            for field, number in (zip(metric.item_fields, values) if metric.item_fields else ())
        }

    def part(self, keys: Sequence[str]) -> dict[str, Any]:
        """The scores of a part of the items: {**means, "count"}."""
        return {**self.means(keys, of_slice=True), "count": len(keys)}

    def slices(self) -> dict[str, Any]:
        """{"slices": {attribute: {slice: {**means, "count"}}}}, or nothing where nothing is known of any item."""
        slices = {
            attribute: {name: self.part(keys) for name, keys in of_attribute.items()}
            for attribute, of_attribute in slice_keys(self.facts).items()
        }
        return {"slices": slices} if slices else {}


class ExpressionScores(Scores):
    """Scores of the expressions of videos, by "<video>/<expression>"."""

    def __init__(self, metrics: Iterable[FrameMetric] | None = None) -> None:
        super().__init__(METRICS["video"] if metrics is None else metrics)
        self.kinds: dict[str, str] = {}

    def add(self, key: str, values: Sequence[Any] | None, kind: str | None = None, facts: Facts | None = None) -> None:
        """One expression. values: its item by each metric, None: its prediction is missing; kind: the dataset's."""
        if values is None:
            self.add_missing_item(key, None if facts is None else facts.targets, facts)
        else:
            self.add_item(key, values, facts)
        if kind is not None:
            self.kinds[key] = kind

    def table(self) -> dict[str, Any]:
        """{**means, "expressions": {key: numbers}}; "missing", "kinds", "slices" where there are any.

        kinds: {kind: {**means, "count"}}; slices: {attribute: {slice: the same}}, see `metrics.slices`. Raises InputError when
        there is no expression.
        """
        if not self.items:
            raise InputError("there is no expression to score; check --split, --video and --limit")
        table: dict[str, Any] = {**self.means(), "expressions": {key: self.numbers(key) for key in self.items}}
        if self.missing:
            table["missing"] = self.missing
        if self.kinds:
            table["kinds"] = {
                kind: self.part([key for key, own in self.kinds.items() if own == kind])
                for kind in sorted(set(self.kinds.values()))
            }
        return table | self.slices()
