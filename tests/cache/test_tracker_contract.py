"""What extraction and everything behind it assume of every tracker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import tiny_dvis
import tiny_sam2
import tiny_vita

from rvos_cache.contracts import TRACKER_CHECKS, TrackerCase
from rvos_cache.contracts.checks import CheckSkipped
from rvos_cache.contracts.scene import SIZE
from rvos_cache.trackers import TRACKERS, tracker_class

pytestmark = pytest.mark.usefixtures("file_on_cpu")  # runs are compared to the last bit

# Settings that make a tracker small enough to test; one with two ways of working has a line for each. What is a function is
# called when it is wanted: it writes a checkpoint.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("dvis", {"checkpoint": tiny_dvis.shared_checkpoint, **tiny_dvis.SMALL}),
    ("dvis", {"checkpoint": tiny_dvis.shared_checkpoint, **tiny_dvis.SMALL, "generator": "frames"}),
    ("flow", {}),
    ("flow", {"mode": "full"}),
    ("frames", {"short_side": 20}),
    ("gdino-queries", {"checkpoint": tiny_sam2.shared_grounding, "masks": "box", "short_side": 32}),
    ("sam2-grid", {"checkpoint": tiny_sam2.shared_checkpoint, **tiny_sam2.GRID}),
    (
        "sam2-box",
        {"checkpoint": tiny_sam2.shared_checkpoint, "grounding_checkpoint": tiny_sam2.shared_grounding, **tiny_sam2.BOX},
    ),
    ("sam2-gt", {"checkpoint": tiny_sam2.shared_checkpoint}),
    ("vita", {"checkpoint": tiny_vita.shared_checkpoint, **tiny_vita.SMALL}),
    ("vita", {"checkpoint": tiny_vita.shared_checkpoint, **tiny_vita.SMALL, "profile": "exact"}),
]

KEEPS_EMPTY = ("gdino-queries",)
"""Trackers of a fixed number of tracks, whatever their masks: a selector links all queries of a frame again."""


def test_every_tracker_is_tested() -> None:
    assert {name for name, _ in CASES} == set(TRACKERS)


@pytest.fixture(scope="module", params=CASES, ids=[f"{n}-{'-'.join(v for v in o.values() if type(v) is str)}" for n, o in CASES])
def case(request: pytest.FixtureRequest) -> TrackerCase:
    name, overrides = request.param
    return TrackerCase(name, {setting: value() if callable(value) else value for setting, value in overrides.items()})


@pytest.mark.slow
@pytest.mark.parametrize("check", TRACKER_CHECKS.values(), ids=lambda check: check.__name__)
def test_contract(case: TrackerCase, check: Callable[[TrackerCase], None]) -> None:
    """The very functions that `rvos-cache check-tracker` runs."""
    with contextlib.suppress(CheckSkipped):
        check(case)


# What built-in trackers promise beyond the contract


def test_the_scene_has_tracks_that_come_and_go(case: TrackerCase) -> None:
    """Otherwise the checks above would pass for a tracker that finds nothing."""
    tracks = case.run.stored.tracks
    if case.name == "frames":
        assert not tracks.origin and tracks.features["rgb"].any()
        return
    area = tracks.masks.area()
    assert 0 < len(tracks.origin) <= getattr(case.tracker.settings, "max_tracks", len(tracks.origin))
    # The tiny Mask2Former's own masks, which generator=frames takes, are empty nowhere.
    assert (area > 0).any() and ((area == 0).any() or case.name in KEEPS_EMPTY or "generator" in case.overrides)
    assert (tracks.presence[area > 0] > 0).all()
    x0, y0, x1, y1 = tracks.prompt_box.T
    assert ((tracks.prompt_frame >= 0) & (x0 < x1) & (y0 < y1)).all()


def test_limits_of_tracks_are_kept(case: TrackerCase) -> None:
    limits = {field: 1 for field in tracker_class(case.name).Settings.model_fields if field.endswith("max_tracks")}
    limited = TrackerCase(case.name, {**case.overrides, **limits}) if limits else case
    assert len(limited.run.stored.tracks.origin) == (1 if limits else len(case.run.stored.tracks.origin))


@pytest.mark.parametrize(("frames", "size"), [(4, SIZE), (1, (1, 1))])
def test_no_track_is_empty(case: TrackerCase, frames: int, size: tuple[int, int]) -> None:
    visible = case.run_on(frames, moves=False, size=size).stored.tracks.masks.area().any(1)
    assert visible.all() or case.name in KEEPS_EMPTY
