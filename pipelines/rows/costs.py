"""What rows cost: hours of a GPU and bytes on disk, from measured rates and the sizes of the datasets."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.rows.needs import Places, all_needs
from pipelines.rows.papers import Paper, Row
from pipelines.rows.rates import Rates
from pipelines.rows.steps import steps_of

MEASURED_ON = "NVIDIA H200"
"""The GPU of `seconds_per_frame` and `train_hours`."""


@dataclass(frozen=True)
class Cost:
    """Of what a row still needs. hours: of this machine for what was measured here, else of one H200; gigabytes; None: not known for
    some step."""

    hours: float | None
    gigabytes: float | None


def cost_of(paper: Paper, name: str, row: Row, places: Places, rates: Rates) -> Cost:
    """The cost of the caches and the runs that are not there; what was begun counts as there. Text caches count nothing."""
    hours: float | None = 0.0
    gigabytes: float | None = 0.0
    steps = steps_of(paper, name, row, places)
    runs = [step for step in steps if step.makes == "run"]
    for step in runs if runs and not (runs[-1].output / "best").exists() else ():
        if not (step.output / "best").exists():
            seconds = rates.trainings.get(step.training)
            hours = _added(hours, 1, step.hours if seconds is None else seconds / 3600, 1)
    for step in steps:
        if step.tracker is not None and not step.output.exists():
            frames = _frames(step.split)
            here = rates.seconds_per_frame(step.tracker.key)
            hours = _added(hours, frames, step.tracker.seconds_per_frame if here is None else here, 3600)
            gigabytes = _added(gigabytes, frames, step.tracker.bytes_per_frame, 1e9)
    return Cost(hours, gigabytes)


def _frames(split: str) -> int | None:
    dataset, _, name = split.partition("/")
    sizes = all_needs().datasets[dataset].splits
    return sizes[name][1] if name in sizes else None


def _added(total: float | None, count: int | None, each: float | None, unit: float) -> float | None:
    return None if total is None or count is None or each is None else total + count * each / unit
