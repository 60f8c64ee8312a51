"""Trackers: one file per frozen model, the only code that touches its internals. To add one, write a file and a line in TRACKERS.

A tracker is a subclass of `Tracker`; the smallest has `channels` and `track`. `rvos-cache check-tracker` checks one.
"""

from __future__ import annotations

from rvos_cache.plugins import resolve
from rvos_cache.trackers.base import Tracker, check_tracker_class, create_tracker

TRACKERS = {
    "dvis": "rvos_cache.trackers.dvis:DvisTracker",
    "flow": "rvos_cache.trackers.flow:FlowTracker",
    "frames": "rvos_cache.trackers.frames:FramesTracker",
    "gdino-queries": "rvos_cache.trackers.referdino.tracker:GdinoQueries",
    "sam2-box": "rvos_cache.trackers.sam2.tracker:Sam2Box",
    "sam2-grid": "rvos_cache.trackers.sam2.tracker:Sam2Grid",
    "sam2-gt": "rvos_cache.trackers.sam2.tracker:Sam2GroundTruth",
    "vita": "rvos_cache.trackers.vita:VitaTracker",
}

__all__ = ["TRACKERS", "Tracker", "open_tracker", "tracker_class"]


def tracker_class(name: str) -> type[Tracker]:
    """The tracker `name` (a name in TRACKERS, or "my_module:MyTracker" of the user's own).

    Raises InputError, before anything runs, if there is none of that name or the class breaks the contract of `Tracker`.
    """
    cls: type[Tracker] = resolve(TRACKERS, name, "tracker", Tracker)
    check_tracker_class(cls, f"tracker {name}")
    return cls


def open_tracker(name: str, settings: object) -> Tracker:
    """The tracker `name` with its weights. Raises InputError like `tracker_class`, and if it cannot be created."""
    return create_tracker(tracker_class(name), settings, f"tracker {name}", is_custom=name not in TRACKERS)
