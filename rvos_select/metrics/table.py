"""The metrics of each protocol. To add a metric, write a file with a subclass of `Metric` and name it here."""

from __future__ import annotations

from typing import Any, TypedDict

from rvos_select.metrics.average_precision import AveragePrecision
from rvos_select.metrics.image_iou import MeanIou, OverallIou, PrecisionAtIou
from rvos_select.metrics.metric import FrameMetric, SampleMetric
from rvos_select.metrics.no_target import NoTargetAccuracy
from rvos_select.metrics.pooled_f1 import PooledF1
from rvos_select.metrics.region_contour import REGION_CONTOUR


class Metrics(TypedDict):
    """Protocol -> its metrics, in the order of a table's columns."""

    video: tuple[FrameMetric, ...]
    davis: tuple[FrameMetric, ...]
    image: tuple[SampleMetric[Any], ...]


ALSO: dict[str, tuple[FrameMetric, ...]] = {"sola": (PooledF1(),)}
"""Name -> metrics that the protocol "video" computes on request, beside its own: what released code prints and no benchmark scores."""

METRICS: Metrics = {
    "video": (REGION_CONTOUR, NoTargetAccuracy()),
    "davis": (REGION_CONTOUR,),
    "image": (AveragePrecision(), OverallIou(), MeanIou(), PrecisionAtIou()),
}
