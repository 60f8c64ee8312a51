"""Which part of a split is scored, and how missing predictions are treated: the same for every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_select.metrics.metric import FrameMetric
from rvos_select.metrics.table import ALSO, METRICS


@dataclass(frozen=True)
class Scope:
    """The videos to score; every expression of them needs a prediction.

    videos: only these; limit: only the first so many; allow_missing: a missing prediction scores 0 and is listed under
    "missing", otherwise it is an InputError that names it; processes: over videos; texts: text caches, whose tags give the kind
    of expressions where the dataset does not; also: names of further metrics of videos (`metrics.table.ALSO`). Raises InputError
    for an unknown one.
    """

    videos: Sequence[str] = ()
    limit: int | None = None
    allow_missing: bool = False
    processes: int = 1
    texts: Sequence[Path] = ()
    also: Sequence[str] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.also if name not in ALSO]
        if unknown:
            raise InputError(f"no further metric {unknown[0]!r}; there are: {', '.join(ALSO)}")

    @property
    def video_metrics(self) -> tuple[FrameMetric, ...]:
        """The metrics of videos: the protocol's, then those of `also`."""
        return (*METRICS["video"], *(metric for name in self.also for metric in ALSO[name]))


WHOLE = Scope()
"""The whole split, every prediction required, in this process."""
