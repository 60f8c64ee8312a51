"""The protocols: how the benchmark of each dataset scores predictions.

To add a protocol, write a module with `evaluate_pngs` and `evaluate_selections` (see `Protocol`), and add a line to `PROTOCOLS`
and its metrics to `METRICS` (metrics/table.py); a dataset then names it in its attribute `protocol`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rvos_cache.datasets import DATASETS, dataset_class
from rvos_cache.errors import InputError
from rvos_select.metrics.metric import Field, Metric
from rvos_select.metrics.table import METRICS


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    name: key of its metrics in METRICS; module: has `evaluate_pngs(dataset, root, split, predictions, scope, **options)` and
    `evaluate_selections(selections, caches, dataset, root, split, policy, scope, **options)`, which return scores as JSON has
    them ("protocol", "dataset", "split" and fractions of 1); options: the names of the options that only it has;
    labels: the values of "protocol" in its scores; counted: key of the scored items, whose number tables print;
    compared: key of the items that `compare` compares, and weight: key of an item's weight there, None: all weigh the same.
    """

    name: str
    module: str
    options: frozenset[str] = frozenset()
    labels: tuple[str, ...] = ()
    counted: str = "expressions"
    compared: str = "expressions"
    weight: str | None = None

    @property
    def metrics(self) -> tuple[Metric[Any], ...]:
        """Its metrics, in the order of a table's columns."""
        metrics: tuple[Metric[Any], ...] = METRICS[self.name]  # type: ignore[literal-required]
        return metrics

    @property
    def fields(self) -> list[Field]:
        """The columns of a table of its scores."""
        return [field for metric in self.metrics for field in metric.fields]

    @property
    def measure_fields(self) -> list[Field]:
        """What `compare` compares."""
        return [field for metric in self.metrics for field in metric.measure_fields]

    def titles(self) -> dict[str, str]:
        """Key of a number -> its title, of all fields."""
        return {field.key: field.title for field in (*self.measure_fields, *self.fields)}

    def evaluator(self, name: str) -> Any:
        """The function `name` of its module."""
        return getattr(import_module(self.module), name)

    def check_options(self, options: Mapping[str, Any], dataset: str) -> None:
        """Raises InputError for an option that the protocol does not have."""
        foreign = sorted(set(options) - self.options)
        if foreign:
            name = foreign[0].replace("_", "-")
            raise InputError(f"--{name} is no option of the protocol of {dataset}; leave it out")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("video", "rvos_select.evaluation.video", labels=("video",)),
        Protocol(
            "davis",
            "rvos_select.evaluation.ref_davis",
            options=frozenset({"strict"}),
            labels=("davis-unsupervised", "davis-strict"),
            counted="objects",
            compared="objects",
        ),
        Protocol(
            "image",
            "rvos_select.evaluation.image",
            options=frozenset({"map_mode"}),
            labels=("image",),
            counted="samples",
            weight="count",
        ),
    )
}
DEFAULT_PROTOCOL = PROTOCOLS["video"]
"""Of datasets that name none, and of scores without a label."""


def protocol_of(dataset: str) -> Protocol:
    """The protocol that the class of `dataset` names; "video" for a dataset that is not known here.

    Raises InputError for an unknown protocol.
    """
    name: str = DEFAULT_PROTOCOL.name
    if dataset in DATASETS or ":" in dataset:
        # A dataset that cannot be imported is scored by the ground truth of its caches.
        with suppress(InputError):
            name = dataset_class(dataset).protocol
    if name not in PROTOCOLS:
        raise InputError(f"dataset {dataset}: unknown protocol {name!r}; there are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def protocol_of_scores(scores: Mapping[str, Any]) -> Protocol | None:
    """The protocol by which `scores` were computed; None: an unknown one."""
    label = scores.get("protocol", DEFAULT_PROTOCOL.name)
    return next((protocol for protocol in PROTOCOLS.values() if label in protocol.labels), None)
