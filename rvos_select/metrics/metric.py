"""What a metric is: its numbers of one item, how they combine over many items, and their titles in tables.

The design follows TrackEval's metrics (github.com/JonathonLuiten/TrackEval, `trackeval/metrics/_base_metric.py`). To add a
metric, write a file with a subclass and add it to `METRICS` (metrics/table.py): evaluation, slices, comparison, oracle, report
and tables read its fields from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_select.metrics.detections import Detections
from rvos_select.metrics.region import check_pair
from rvos_select.metrics.silhouette import Silhouette

Item = TypeVar("Item")
NO_FRAME = "an expression's video has no annotated frame, so it cannot be scored; leave the video out"


@dataclass(frozen=True)
class Field:
    """One number of a result, a fraction of 1.

    key: in JSON; title: in tables; part: key of the number inside `row[key]`, where that is a mapping.
    """

    key: str
    title: str
    part: str | None = None

    def value(self, row: Mapping[str, Any]) -> float | None:
        """The number in a row of a result; None where the row lacks it."""
        value = row.get(self.key)
        if self.part is not None and value is not None:
            value = value.get(self.part)
        return None if value is None else float(value)


def percent(value: float | None) -> str:
    """A fraction of 1 as tables print it."""
    return "–" if value is None else f"{100 * value:.1f}"


class Metric(ABC, Generic[Item]):
    """One metric. An item is what is scored: an expression, an object, or an expression in one frame.

    Subclass `FrameMetric` or `SampleMetric`, which compute the items.
    """

    fields: ClassVar[tuple[Field, ...]]
    """The numbers of many items together, which `combine` returns, in the order of a table's columns."""
    item_fields: ClassVar[tuple[Field, ...]] = ()
    """The numbers of one item that results keep; an `Item` is then a tuple of them. Default: results keep none."""
    measure_fields: ClassVar[tuple[Field, ...]] = ()
    """The numbers that `measures` returns, the main one first. Default: `item_fields`."""
    in_slices: ClassVar[bool] = True
    """Whether the scores of slices and kinds have this metric."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.measure_fields = cls.measure_fields or cls.item_fields

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """This metric with the options that it has among `options`, those of the protocol. Default: it has none."""
        return self

    @abstractmethod
    def missing(self, truth: int | None) -> Item:
        """The item of a missing prediction. truth: see the subclasses."""

    @abstractmethod
    def combine(self, items: Mapping[str, Item]) -> dict[str, Any]:
        """`fields` of one item or more, by key; a field that does not apply to these items is left out."""

    def measures(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """`measure_fields` from `item_fields`, of one item or of means. Default: the same numbers."""
        return {field.key: numbers[field.key] for field in self.item_fields}


class FrameMetric(Metric[tuple[float, ...]]):
    """A metric of a predicted mask in each annotated frame of a video. The truth of a missing prediction: number of targets."""

    width: ClassVar[int] = 0
    """Count of numbers that `frame` returns. Default: one for each of `item_fields`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.width = cls.width or len(cls.item_fields)

    @abstractmethod
    def frame(self, prediction: Silhouette, truth: Silhouette) -> tuple[float, ...]:
        """The numbers of one frame, (width,)."""

    def item(self, frames: NDArray[np.float64], targets: int | None) -> tuple[float, ...]:
        """The item of an expression: by default the mean over its frames.

        frames: `frame` of each annotated frame, (T, width); targets: count of objects that the expression names, None: not known.
        """
        return tuple(frames.mean(axis=0).tolist())

    def missing(self, truth: int | None) -> tuple[float, ...]:
        """0 in each field."""
        return (0.0,) * len(self.item_fields)

    def combine(self, items: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
        """The measures of the means over the items."""
        means = np.array(list(items.values()), np.float64).mean(axis=0)
        return self.measures({field.key: float(mean) for field, mean in zip(self.item_fields, means)})


class SampleMetric(Metric[Item]):
    """A metric of scored masks in one frame. The truth of a missing prediction: pixels of the true mask."""

    @abstractmethod
    def item(self, sample: Detections) -> Item:
        """The item of one sample."""


class FrameMetrics:
    """Several metrics of frames at once: the numbers of all of them lie next to each other, (width,)."""

    def __init__(self, metrics: Sequence[FrameMetric]) -> None:
        self.metrics = tuple(metrics)
        ends = np.cumsum([0, *(metric.width for metric in metrics)]).tolist()
        self.columns = [slice(start, stop) for start, stop in zip(ends, ends[1:])]
        self.width: int = ends[-1]

    def frame(self, prediction: Silhouette, truth: Silhouette) -> tuple[float, ...]:
        """The numbers of one frame."""
        numbers: tuple[float, ...] = ()
        for metric in self.metrics:
            numbers += metric.frame(prediction, truth)
        return numbers

    def items(self, frames: NDArray[np.float64], targets: int | None) -> tuple[tuple[float, ...], ...]:
        """The item of each metric. frames: (T, width); targets: as in `FrameMetric.item`."""
        return tuple(metric.item(frames[:, columns], targets) for metric, columns in zip(self.metrics, self.columns))

    def score(
        self, prediction: RleMasks, truth: RleMasks, annotated: NDArray[np.bool_], targets: int | None = None
    ) -> tuple[tuple[float, ...], ...]:
        """The item of each metric of one expression. prediction, truth: (1, T); annotated: bool (T,).

        Raises InputError when no frame is annotated, ValueError when frames or sizes differ.
        """
        if not annotated.any():
            raise InputError(NO_FRAME)
        check_pair(prediction, truth)
        frames = [
            self.frame(*(Silhouette.of_runs(masks.bytes_at(0, t), masks.size) for masks in (prediction, truth)))
            for t in np.flatnonzero(annotated).tolist()
        ]
        return self.items(np.array(frames), targets)
