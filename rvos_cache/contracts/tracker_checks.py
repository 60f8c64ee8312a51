"""What extraction, the store and stage two assume of every tracker, as functions that raise CheckFailed."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.axes import axis_of
from rvos_cache.contracts.checks import CheckFailed, CheckResult, CheckSkipped, run_check
from rvos_cache.contracts.folders import folder_of
from rvos_cache.contracts.scene import SIZE, make_expressions, make_scene
from rvos_cache.errors import InputError
from rvos_cache.extraction.local_engine import LocalEngine
from rvos_cache.extraction.run import run_videos
from rvos_cache.extraction.steps import tracks_card
from rvos_cache.extraction.work import TrackWork, extract_video
from rvos_cache.masks import RleMasks
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, TrackCache, TrackRecord, content_digest, verify, write_tracks
from rvos_cache.trackers import Tracker, open_tracker, tracker_class
from rvos_cache.types import VIDEO, GroundTruth, TrackSet

FRAMES = 7
DATASET = "rvos_cache.contracts.scene:SceneDataset"
UNKNOWN_SETTING = "no_such_setting"


@dataclass(frozen=True)
class Run:
    """One run of a tracker. returned: what it returned, where features may be used-up iterators; stored: read from the cache."""

    returned: TrackRecord
    stored: TrackRecord


@dataclass
class TrackerCase:
    """A tracker with settings, and its runs on small videos. name, overrides: as `extract` takes them."""

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def tracker(self) -> Tracker:
        """The tracker. Raises InputError if it cannot be loaded."""
        return self.new_tracker()

    @cached_property
    def run(self) -> Run:
        """Its run on a video of FRAMES frames."""
        return self.run_on()

    @cached_property
    def _folder(self) -> Path:
        return folder_of(self)

    def new_tracker(self) -> Tracker:
        """A new instance."""
        settings = build(tracker_class(self.name).Settings, self.overrides, f"tracker {self.name}")
        return open_tracker(self.name, settings)

    def work(self, split: str = "train", tracker: Tracker | None = None) -> TrackWork:
        """The work of an extraction from SceneDataset, with the opened tracker."""
        work = TrackWork(DATASET, Path("."), split, self.name, self.overrides)
        vars(work)["model"] = tracker or self.tracker
        return work

    def path(self) -> Path:
        """A new path for a cache."""
        return Path(tempfile.mkdtemp(dir=self._folder)) / "tracks.zarr"

    def run_on(
        self,
        frames: int = FRAMES,
        moves: bool = True,
        size: tuple[int, int] = SIZE,
        *,
        hidden: bool = False,
        reverse: bool = False,
        more_objects: int = 0,
        tracker: Tracker | None = None,
    ) -> Run:
        """Run the tracker on `make_scene`, write and read the result, as extraction does.

        hidden: without ground truth; reverse: the expressions in reverse order; more_objects: objects without any
        pixel; tracker: by default the case's own instance.
        Raises InputError for anything that would fail the video.
        """
        model = tracker or self.tracker
        video, truth = make_scene(frames, moves, size)
        if more_objects:
            names = (*truth.object_ids, *(f"v-{i}" for i in range(1, more_objects + 1)))
            masks = RleMasks.concatenate([truth.masks, RleMasks.empty(more_objects, frames, size)])
            truth = GroundTruth(names, masks, truth.annotated)
        expressions = make_expressions(hidden=hidden)[:: -1 if reverse else 1]
        returned = extract_video(model, video, expressions, None if hidden else truth, self.name)
        path = self.path()
        write_tracks(CacheWriter(path, tracks_card(self.work("hidden" if hidden else "train", model), path)), returned)
        return Run(returned, TrackCache(path).read("v"))


def check_settings(case: TrackerCase) -> None:
    """A setting that does not exist is an error."""
    model = tracker_class(case.name).Settings
    try:
        build(model, {**case.overrides, UNKNOWN_SETTING: 1}, f"tracker {case.name}")
    except InputError as error:
        if UNKNOWN_SETTING in str(error):
            return
        raise
    raise CheckFailed(f'Settings accept the unknown name {UNKNOWN_SETTING!r}; do not set extra="allow" or "ignore"')


def check_declared(case: TrackerCase) -> None:
    """Tokens, features and measurements have the names, dtypes and shapes that are declared, and are finite."""
    stored, tracker = case.run.stored, case.tracker
    for kind, specs, arrays in (
        ("feature", tracker.feature_specs, stored.tracks.features),
        ("measurement", tracker.measurement_specs, stored.measurements),
    ):
        if arrays.keys() != {spec.name for spec in specs}:
            raise CheckFailed(f"{kind}s {sorted(arrays)}, declared {sorted(spec.name for spec in specs)}")
    # Three objects more: where N, E and A were equal by chance, a swapped axis shows.
    if tracker.measurement_specs:
        case.run_on(more_objects=3)


def check_presence(case: TrackerCase) -> None:
    """presence is a probability, and 0 in frames where the mask has no pixel."""
    tracks = case.run.stored.tracks
    if not ((tracks.presence >= 0) & (tracks.presence <= 1)).all():
        raise CheckFailed(f"presence leaves [0, 1]: {tracks.presence.min()} to {tracks.presence.max()}")
    wrong = np.argwhere((tracks.masks.area() == 0) & (tracks.presence > 0))
    if len(wrong):
        n, t = wrong[0]
        raise CheckFailed(f"presence of track {n} in frame {t} is {tracks.presence[n, t]}, but its mask has no pixel there")


def check_prompts(case: TrackerCase) -> None:
    """prompt, prompt_frame, prompt_box and origin point into the video."""
    tracks = case.run.returned.tracks
    for name, dtype in (("prompt", np.int32), ("prompt_frame", np.int32), ("prompt_box", np.float32)):
        if getattr(tracks, name).dtype != dtype:
            raise CheckFailed(f"{name} is {getattr(tracks, name).dtype}, expected {np.dtype(dtype)}")
    count, frames = len(case.run.stored.expressions), len(case.run.stored.frame_names)
    if not ((tracks.prompt >= VIDEO) & (tracks.prompt < count)).all():
        raise CheckFailed(f"prompt {tracks.prompt.tolist()} is neither VIDEO ({VIDEO}) nor an index of the {count} expressions")
    if not case.tracker.reads_expressions and (tracks.prompt != VIDEO).any():
        raise CheckFailed("prompt names an expression, but reads_expressions is False")
    if not ((tracks.prompt_frame >= -1) & (tracks.prompt_frame < frames)).all():
        raise CheckFailed(f"prompt_frame {tracks.prompt_frame.tolist()} is not a frame of the {frames}, or -1 for unknown")
    x0, y0, x1, y1 = tracks.prompt_box.T
    height, width = SIZE
    inside = (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
    wrong = np.flatnonzero(~inside & (tracks.prompt_box != 0).any(1))
    if len(wrong):
        box = tracks.prompt_box[wrong[0]].tolist()
        raise CheckFailed(f"prompt_box {box} of track {wrong[0]} is not x0 y0 x1 y1 inside {width} x {height} pixels, or zeros")
    if not all(isinstance(name, str) and name for name in tracks.origin):
        raise CheckFailed(f"origin {tracks.origin} has an empty name")


def check_read_back(case: TrackerCase) -> None:
    """The cache returns what the tracker returned."""
    _compare(case.run.returned.tracks, case.run.stored.tracks, "read from the cache")
    for name, value in case.run.returned.measurements.items():
        if not np.array_equal(value, case.run.stored.measurements[name]):
            raise CheckFailed(f"measurement {name!r} differs when it is read from the cache")


def check_deterministic(case: TrackerCase) -> None:
    """A new instance gives the same result for the same video."""
    again = case.run_on(tracker=case.new_tracker()).stored
    _compare(case.run.stored.tracks, again.tracks, "computed by a new instance; set every seed")
    for name, value in case.run.stored.measurements.items():
        if not np.array_equal(value, again.measurements[name]):
            raise CheckFailed(f"measurement {name!r} differs when it is computed by a new instance")


def check_expression_order(case: TrackerCase) -> None:
    """The order of the expressions does not change the tracks of a tracker that does not read them."""
    if case.tracker.reads_expressions:
        raise CheckSkipped("reads_expressions is True")
    by_expression = {spec.name for spec in case.tracker.feature_specs if axis_of(spec.dims, "E") is not None}
    other = case.run_on(reverse=True).stored.tracks
    _compare(case.run.stored.tracks, other, "computed with the expressions in reverse order", by_expression)


def check_ground_truth_unseen(case: TrackerCase) -> None:
    """The tracks are the same with and without ground truth."""
    if case.tracker.wants_ground_truth:
        raise CheckSkipped("wants_ground_truth is True")
    hidden = case.run_on(hidden=True).stored
    _compare(case.run.stored.tracks, hidden.tracks, "computed without ground truth")


def check_blank_video(case: TrackerCase) -> None:
    """A video without any object is legal; it may have N = 0 tracks."""
    _check_size(case.run_on(4, moves=False), 4, SIZE)


def check_one_frame(case: TrackerCase) -> None:
    """A video of T = 1 frame is legal."""
    _check_size(case.run_on(1), 1, SIZE)


def check_tiny_frames(case: TrackerCase) -> None:
    """Frames of 1 x 1 and of 30 x 3 pixels are legal."""
    for frames, moves, size in ((1, False, (1, 1)), (3, True, (30, 3))):
        try:
            run = case.run_on(frames, moves, size)
        except InputError as error:
            raise CheckFailed(f"frames of {size[0]} x {size[1]} pixels: {error}") from error
        _check_size(run, frames, size)


def check_resume(case: TrackerCase) -> None:
    """A second extraction into the same cache does nothing, and the cache has no fault."""
    work, path = case.work(), case.path()
    videos = work.source.video_ids()
    reports = []
    for _ in range(2):
        with contextlib.redirect_stderr(io.StringIO()):
            reports.append(run_videos(path, tracks_card(work, path), videos, work, "check", LocalEngine()))
    first, second = reports
    if first.failed:
        video_id, error = min(first.failed.items())
        raise CheckFailed(f"video {video_id} failed: {error}")
    if tuple(second.skipped) != videos:
        raise CheckFailed(f"the second extraction computed {second.done} again")
    faults = list(verify(path))
    if faults:
        raise CheckFailed(faults[0])
    content_digest(path)


TRACKER_CHECKS: dict[str, Callable[[TrackerCase], None]] = {
    "tracks a video; tokens, features and measurements as declared": check_declared,
    "unknown settings are rejected": check_settings,
    "presence in [0, 1], and 0 where a mask has no pixel": check_presence,
    "prompts point into the video": check_prompts,
    "written and read back": check_read_back,
    "a new instance gives the same tracks": check_deterministic,
    "the order of the expressions changes nothing": check_expression_order,
    "the same tracks with and without ground truth": check_ground_truth_unseen,
    "a blank video (N = 0 allowed)": check_blank_video,
    "one frame (T = 1)": check_one_frame,
    "tiny frames": check_tiny_frames,
    "extract, resume, verify": check_resume,
}
"""Title -> check, in the order in which they run."""
DEPENDENT = (
    check_presence,
    check_prompts,
    check_read_back,
    check_deterministic,
    check_expression_order,
    check_ground_truth_unseen,
)
"""Checks of the run that the first check makes."""


def run_tracker_checks(name: str, overrides: Mapping[str, Any]) -> Iterator[CheckResult]:
    """The result of every check of the tracker `name` with the settings `overrides`, one after the other.

    Raises InputError if the tracker cannot be loaded.
    """
    case = TrackerCase(name, overrides)
    _ = case.tracker
    has_run = True
    for title, check in TRACKER_CHECKS.items():
        if check in DEPENDENT and not has_run:
            yield CheckResult(title, "skipped", "the first test failed")
            continue
        result = run_check(title, check, case)
        if check is check_declared:
            has_run = result.status == "ok"
            if has_run and not len(case.run.stored.tracks.origin):
                result = replace(result, message="no track in the test video, a red square that moves; most tests cannot fail")
        yield result


def _check_size(run: Run, frames: int, size: tuple[int, int]) -> None:
    masks = run.stored.tracks.masks
    if masks.shape[1] != frames or masks.size != size:
        raise CheckFailed(f"masks have {masks.shape[1]} frames of {masks.size}, the video {frames} of {size}")


def _compare(a: TrackSet, b: TrackSet, how: str, ignored: Sequence[str] | set[str] = ()) -> None:
    """Raises CheckFailed, naming the part, if two results differ. ignored: features that may. Iterators are not compared."""
    parts: dict[str, tuple[Any, Any]] = {
        name: (getattr(a, name), getattr(b, name)) for name in ("tokens", "presence", "prompt", "prompt_frame", "prompt_box")
    }
    for name in a.features.keys() - set(ignored):
        parts[f"feature {name!r}"] = a.features[name], b.features[name]
    if a.masks.shape != b.masks.shape:
        raise CheckFailed(f"{a.masks.shape[0]} tracks, but {b.masks.shape[0]} when {how}")
    if a.masks != b.masks:
        raise CheckFailed(f"masks differ when {how}")
    if tuple(a.origin) != tuple(b.origin):
        raise CheckFailed(f"origin differs when {how}")
    for name, (one, two) in parts.items():
        if isinstance(one, np.ndarray) and isinstance(two, np.ndarray) and not np.array_equal(one, two):
            raise CheckFailed(f"{name} differs when {how}")
