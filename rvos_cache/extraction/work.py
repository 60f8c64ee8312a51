"""What is made of one video: the part of a run that an engine hands out."""

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
from rvos_cache.overlap import count_overlap
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TrackRecord, write_tracks
from rvos_cache.trackers import Tracker, tracker_class
from rvos_cache.types import Expression, GroundTruth, Video


@dataclass(frozen=True)
class Made:
    """What was made of a video and is not written yet.

    write: publishes it and returns its frames; detached: it reads nothing that making the next video changes, so that a
    thread may write it meanwhile.
    """

    write: Callable[[CacheWriter], int]
    detached: bool


class Work(Protocol):
    """What is done with every video of a run. An engine on other machines pickles it; it then opens there what it needs."""

    def open(self, card: Card) -> None:
        """Open all that `make` needs, on a machine that did not make the card.

        Raises InputError where something is missing, or is not what the card says.
        """

    def make(self, video_id: str) -> Made:
        """Everything that comes before writing. What it raises is the fault of this video."""


@dataclass(frozen=True)
class OneStep:
    """Work of callers that make and write a video in one function, which returns its frames."""

    one: Callable[[CacheWriter, str], int]

    def open(self, card: Card) -> None:
        """It was opened where the function was made."""

    def make(self, video_id: str) -> Made:
        """All is left to the writing."""
        return Made(lambda writer: self.one(writer, video_id), detached=False)


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
        """The tracker's settings, resolved."""
        return build(tracker_class(self.tracker).Settings, self.overrides, f"tracker {self.tracker}")

    @cached_property
    def model(self) -> Tracker:
        """The tracker with its weights."""
        made: Tracker = tracker_class(self.tracker)(self.settings)
        return made

    @property
    def prompted(self) -> bool:
        """Whether the split shows what the tracker prompts with."""
        return self.source.has_ground_truth or not tracker_class(self.tracker).wants_ground_truth

    def check_prompted(self) -> None:
        """Raises InputError where the split hides what the tracker prompts with."""
        if not self.prompted:
            raise InputError(
                f"{self.root}, split {self.split}: tracker {self.tracker} prompts with ground truth, which this split hides; "
                "give a split that shows it, or another tracker"
            )

    def of_split(self, split: str) -> TrackWork:
        """The same work on another split, with the tracker that is open."""
        other = replace(self, split=split)
        if "model" in vars(self):
            vars(other)["model"] = self.model
        return other

    def __getstate__(self) -> dict[str, Any]:
        # Not what was opened: another machine opens it itself, from another working folder.
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "root": Path(self.root).absolute()}

    def open(self, card: Card) -> None:
        """The dataset and the model. Raises InputError where one cannot be opened, or the weights are other ones."""
        self.source.video_ids()
        found = self.model.weight_hashes()
        for name in sorted(found.keys() | card.weights):
            if found.get(name) != card.weights.get(name):
                raise InputError(
                    f"{name}: {socket.gethostname()} has other weights ({found.get(name)}) than the run's own machine "
                    f"({card.weights.get(name)}); give all machines the same"
                )

    def make(self, video_id: str) -> Made:
        """Tracks and overlap counts of one video."""
        began, source = time.perf_counter(), self.source
        clean = source.video(video_id)
        video = clean if self.corrupt is None else corrupt_video(clean, self.corrupt)
        truth = source.ground_truth(video_id) if source.has_ground_truth else None
        record = extract_video(self.model, video, source.expressions(video_id), truth)
        origin = {"host": socket.gethostname(), "seconds": round(time.perf_counter() - began, 3)}

        def write(writer: CacheWriter) -> int:
            write_tracks(writer, record, origin)
            return len(video)

        # A feature that comes frame by frame is still being computed while it is written.
        return Made(write, all(isinstance(value, np.ndarray) for value in record.tracks.features.values()))


def extract_video(
    tracker: Tracker, video: Video, expressions: Sequence[Expression], ground_truth: GroundTruth | None
) -> TrackRecord:
    """Tracks of one video and their overlap with its ground truth (None: hidden). The step that `ask` shares."""
    given = ground_truth if tracker.wants_ground_truth else None
    if tracker.wants_ground_truth and given is None:
        raise InputError(f"video {video.video_id}: this tracker prompts with ground truth, and the split hides it")
    tracks = tracker.track(video, expressions, given)
    overlap = None if ground_truth is None else count_overlap(tracks.masks, ground_truth)
    return TrackRecord(video.video_id, video.frame_names, video.size, tuple(expressions), tracks, ground_truth, overlap)
