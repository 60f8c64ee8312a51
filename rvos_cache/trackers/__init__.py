"""Trackers: one file per frozen upstream, the only code that touches its internals. One line in TRACKERS each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rvos_cache import settings
from rvos_cache.plugins import resolve
from rvos_cache.types import Expression, FeatureSpec, GroundTruth, TrackSet, Video

TRACKERS = {
    "flow": "rvos_cache.trackers.flow:FlowTracker",
    "sam2-box": "rvos_cache.trackers.sam2.tracker:Sam2Box",
    "sam2-grid": "rvos_cache.trackers.sam2.tracker:Sam2Grid",
    "sam2-gt": "rvos_cache.trackers.sam2.tracker:Sam2GroundTruth",
    "vita": "rvos_cache.trackers.vita:VitaTracker",
}


class Tracker(Protocol):
    """Videos to tracks. A tracker never sees paths or the store.

    Settings: its frozen settings model; reads_expressions: its tracks depend on the sentences; wants_ground_truth: it
    prompts with annotated masks (training only); channels: C of its tokens; feature_specs: the extra arrays it returns.
    One that knows what its cache will take has the method of `planned.KnowsBytes` too.
    """

    Settings: type[settings.Settings]
    reads_expressions: bool
    wants_ground_truth: bool
    channels: int
    feature_specs: tuple[FeatureSpec, ...]
    label_iou: float
    """Mean IoU above which one of its tracks is a positive by default."""

    def __init__(self, settings: Any) -> None: ...

    def weight_hashes(self) -> dict[str, str]:
        """Name of each loaded checkpoint -> digest of its weights; empty when there are none."""

    def track(self, video: Video, expressions: Sequence[Expression], ground_truth: GroundTruth | None = None) -> TrackSet:
        """All tracks of one video. `ground_truth` is given exactly when `wants_ground_truth`."""


def tracker_class(name: str) -> type[Tracker]:
    """The tracker `name` (a name in TRACKERS or "package.module:Class")."""
    found: type[Tracker] = resolve(TRACKERS, name, "tracker")
    return found
