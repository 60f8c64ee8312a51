"""The processing of one video: what an engine calls for every video of a run."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rvos_cache.corruptions import corrupt_video, parse_corruption
from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.identity import frames_digest
from rvos_cache.overlap import count_overlap
from rvos_cache.plugins import checked_weights, type_text
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackRecord, write_tracks
from rvos_cache.system.gpu_memory import explaining_memory
from rvos_cache.trackers import TRACKERS, Tracker, open_tracker, tracker_class
from rvos_cache.types import Expression, GroundTruth, TrackSet, Video


@dataclass(frozen=True)
class Pending:
    """A video that was computed and is not written yet.

    write: publishes the video and returns its number of frames; detached: `write` reads nothing that computing the next video
    changes, so that a thread may run it at the same time.
    """

    write: Callable[[CacheWriter], int]
    detached: bool


class Work(Protocol):
    """What a run does with each of its videos. An engine on other machines pickles it, and calls `open` there."""

    def open(self, card: Card) -> None:
        """Open everything that `make` needs, on a machine that did not make the card.

        Raises InputError if something is missing, or differs from what the card says.
        """

    def make(self, video_id: str) -> Pending:
        """Everything before writing. An exception is the failure of this video."""


@dataclass(frozen=True)
class OneStep:
    """Work that computes and writes a video in one function, which returns the number of frames."""

    one: Callable[[CacheWriter, str], int]

    def open(self, card: Card) -> None:
        """Nothing to open: the function has it all."""

    def make(self, video_id: str) -> Pending:
        """Leave everything to the writing."""
        return Pending(lambda writer: self.one(writer, video_id), detached=False)


@dataclass(frozen=True)
class TrackWork:
    """Tracks of a split's videos: the arguments of `extract`, and what they open, once in each process that needs it."""

    dataset: str
    root: Path
    split: str
    tracker: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    corrupt: str | None = None

    def __post_init__(self) -> None:
        if self.corrupt is not None:
            parse_corruption(self.corrupt)

    @cached_property
    def source(self) -> Dataset:
        """The dataset."""
        return open_dataset(self.dataset, self.root, self.split)

    @cached_property
    def settings(self) -> Any:
        """The tracker's settings, with defaults filled in."""
        return build(tracker_class(self.tracker).Settings, self.overrides, f"tracker {self.tracker}")

    @cached_property
    def model(self) -> Tracker:
        """The tracker with its weights."""
        return open_tracker(self.tracker, self.settings)

    @cached_property
    def weights(self) -> dict[str, str]:
        """Name of each checkpoint of the tracker -> digest."""
        return checked_weights(self.model, f"tracker {self.tracker}", is_custom=self.tracker not in TRACKERS)

    @property
    def has_prompts(self) -> bool:
        """Whether the split has the ground truth that the tracker prompts with, or the tracker prompts without."""
        return self.source.has_ground_truth or not tracker_class(self.tracker).wants_ground_truth

    def check_prompts(self) -> None:
        """Raises InputError if the tracker prompts with ground truth that the split hides."""
        if not self.has_prompts:
            raise InputError(
                f"{self.root}, split {self.split}: tracker {self.tracker} prompts with ground truth, which this split hides; "
                "give a split that has it, or another tracker"
            )

    def of_split(self, split: str, source: Dataset | None = None) -> TrackWork:
        """The same work on another split, with the same opened tracker. source: that split, if it is open."""
        other = replace(self, split=split)
        if source is not None:
            vars(other)["source"] = source
        vars(other).update({name: vars(self)[name] for name in ("settings", "model", "weights") if name in vars(self)})
        return other

    def __getstate__(self) -> dict[str, Any]:
        # Without what is open: another machine opens it itself, from another working folder.
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "root": Path(self.root).absolute()}

    def open(self, card: Card) -> None:
        """Open the dataset and the tracker. Raises InputError if one cannot be opened, or its weights differ from the card's."""
        self.source.video_ids()
        for name in sorted(self.weights.keys() | card.weights):
            if self.weights.get(name) != card.weights.get(name):
                raise InputError(
                    f"{name}: {socket.gethostname()} has other weights ({self.weights.get(name)}) than the machine that started "
                    f"the run ({card.weights.get(name)}); give all machines the same"
                )

    def make(self, video_id: str) -> Pending:
        """Tracks, overlap counts and measurements of one video."""
        start, source = time.perf_counter(), self.source
        clean = source.video(video_id)
        video = clean if self.corrupt is None else corrupt_video(clean, self.corrupt)
        truth = source.ground_truth(video_id) if source.has_ground_truth else None
        with explaining_memory(f"video {video_id}, {len(video)} frames of {video.size}, tracker {self.tracker}", self.settings):
            record = extract_video(self.model, video, source.expressions(video_id), truth, self.tracker)
        origin = {"host": socket.gethostname(), "seconds": round(time.perf_counter() - start, 3)}

        def write(writer: CacheWriter) -> int:
            write_tracks(writer, record, origin)
            return len(video)

        # A feature that is an iterator of frames is still being computed while it is written.
        return Pending(write, all(isinstance(value, np.ndarray) for value in record.tracks.features.values()))


def extract_video(
    tracker: Tracker,
    video: Video,
    expressions: Sequence[Expression],
    ground_truth: GroundTruth | None,
    name: str | None = None,
) -> TrackRecord:
    """Tracks of one video, with overlap counts and measurements if `ground_truth` is given.

    The tracker does not see `ground_truth` while it tracks, unless it has `wants_ground_truth`. name: of the tracker, for
    errors. Raises InputError if the tracker needs ground truth that is None, does not return a TrackSet of this video, or
    does not measure what it declares.
    """
    title = f"tracker {name or type(tracker).__name__}"
    if not tracker.wants_ground_truth:
        tracks = tracker.track(video, expressions)
    elif ground_truth is None:
        raise InputError(f"video {video.video_id}: this tracker prompts with ground truth, and the split hides it")
    else:
        tracks = tracker.track(video, expressions, ground_truth)  # type: ignore[call-arg]
    _check_tracks(tracker, tracks, video, title)
    measurements: Mapping[str, Any] = {}
    if ground_truth is not None and tracks.measure is not None:
        measurements = tracks.measure(ground_truth)
        if not isinstance(measurements, Mapping):
            raise InputError(f"{title}: measure() returned {type_text(measurements)}, expected a dict of name to array")
    overlap = None if ground_truth is None else count_overlap(tracks.masks, ground_truth)
    return TrackRecord(
        video.video_id,
        video.frame_names,
        video.size,
        tuple(expressions),
        tracks,
        ground_truth,
        overlap,
        measurements,
        frames_digest(video),
    )


def _check_tracks(tracker: Tracker, tracks: object, video: Video, title: str) -> None:
    if not isinstance(tracks, TrackSet):
        raise InputError(f"{title}: track() returned {type_text(tracks)}, expected a TrackSet")
    if tracks.masks.shape[1] != len(video) or tracks.masks.size != tuple(video.size):
        raise InputError(
            f"{title}: masks have {tracks.masks.shape[1]} frames of {tracks.masks.size} pixels (height, width), the video has "
            f"{len(video)} of {tuple(video.size)}"
        )
    if tracker.measurement_specs and tracks.measure is None:
        names = ", ".join(spec.name for spec in tracker.measurement_specs)
        raise InputError(f"{title}: declares measurements ({names}), but its TrackSet has no measure")
    if tracks.measure is not None and not tracker.measurement_specs:
        raise InputError(f"{title}: its TrackSet has measure, but measurement_specs declares no measurement")
