"""What rows cost: hours of a GPU and bytes on disk, from measured rates and the sizes of the datasets."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.rows.needs import Places, all_needs, row_tracker, trained_splits
from pipelines.rows.papers import Paper, Row
from pipelines.rows.steps import steps_of

MEASURED_ON = "NVIDIA H200"
"""The GPU of `seconds_per_frame` and `train_hours`."""


@dataclass(frozen=True)
class Cost:
    """Of what a row still needs. hours: of one H200; gigabytes; None: not known for some step."""

    hours: float | None
    gigabytes: float | None


def cost_of(paper: Paper, name: str, row: Row, places: Places) -> Cost:
    """The cost of the caches and the run that are not there."""
    hours: float | None = 0.0
    gigabytes: float | None = 0.0
    for split, tracker in dict.fromkeys(tracked_splits(paper, row)):
        choice = row_tracker(paper, row, tracker, places)
        if (places.out / "cache" / split / f"{choice.key}.zarr").exists():
            continue
        frames = _frames(split)
        hours = _added(hours, frames, choice.seconds_per_frame, 3600)
        gigabytes = _added(gigabytes, frames, choice.bytes_per_frame, 1e9)
    if row.way == "train":
        *_, run = [step.output for step in steps_of(paper, name, row, places) if step.makes == "run"]
        if not (run / "best").exists():
            hours = _added(hours, 1, row.train_hours, 1)
    return Cost(hours, gigabytes)


def tracked_splits(paper: Paper, row: Row) -> list[tuple[str, str]]:
    """Every (dataset/split, tracker) whose cache a row reads."""
    tested = [(split, row.test) for split in row.paper]
    return [(split, name) for split, names in [*trained_splits(paper, row), *tested] for name in names]


def _frames(split: str) -> int | None:
    dataset, _, name = split.partition("/")
    sizes = all_needs().datasets[dataset].splits
    return sizes[name][1] if name in sizes else None


def _added(total: float | None, count: int | None, each: float | None, unit: float) -> float | None:
    return None if total is None or count is None or each is None else total + count * each / unit
