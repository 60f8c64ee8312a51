"""Splits of single frames: every scored frame of a split as a video of its own, as image-level benchmarks are scored.

Every dataset that lists its scored frames (A2D-Sentences, JHMDB-Sentences) has the split `<split>-frames`. A track is then a mask of
one frame, with a score of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from rvos_cache.datasets.base import Dataset
from rvos_cache.datasets.samples import Sample
from rvos_cache.errors import InputError
from rvos_cache.types import Expression, GroundTruth, Video

SUFFIX = "-frames"
"""Appended to the name of the split."""
BETWEEN = "_f_"
"""Between the id of a video, or of an object, and the number of the frame, from 1."""


class SingleFrames(Dataset):
    """The scored frames of a split as videos `<video>_f_<number>`, with the expressions that are scored in them.

    Raises InputError for a dataset that lists no scored frames.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.root, self.split = dataset.root, dataset.split + SUFFIX
        self.name, self.protocol, self.one_object = dataset.name, dataset.protocol, dataset.one_object
        self.upright = dataset.upright
        if type(dataset).samples is Dataset.samples:
            raise InputError(
                f"{dataset.root}, split {self.split}: {dataset.name} does not list scored frames; give {dataset.split!r}"
            )
        # The frames of a video come one after the other: its film is decoded once.
        self._video = lru_cache(1)(dataset.video)
        self._truth = lru_cache(1)(dataset.ground_truth)

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return no split: splits of single frames are opened by their name only."""
        return []

    @property
    def has_ground_truth(self) -> bool:
        """Whether the original split has ground truth."""
        return self.dataset.has_ground_truth

    def video_ids(self) -> tuple[str, ...]:
        """Return `<video>_f_<number>` of each scored frame, in the order of the videos, then of the frames."""
        ids = []
        for video_id in self.dataset.video_ids():
            frames = sorted({sample.t for sample in self.dataset.samples(video_id) or ()})
            ids += [_numbered(video_id, t) for t in frames]
        return tuple(ids)

    def video(self, video_id: str) -> Video:
        """Return the frame. Raises InputError like the original split, or if the frame is not listed."""
        original_id, t = self._place(video_id)
        original = self._video(original_id)
        if t >= len(original):
            raise InputError(f"video {original_id}: frame {t + 1} is listed, it has {len(original)}; copy the video again")
        # A film's bytes do not tell which of its frames is read.
        files = (original.files[t],) if len(original.files) == len(original) else ()
        return Video(video_id, (original.frame_names[t],), original.size, lambda _: original.read(t), files=files)

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the expressions that are scored in the frame, in the order of the original video."""
        original_id, t = self._place(video_id)
        scored = {sample.expression_id for sample in self._scored(original_id, t)}
        return tuple(
            replace(e, video_id=video_id, targets=None if e.targets is None else tuple(_numbered(o, t) for o in e.targets))
            for e in self.dataset.expressions(original_id)
            if e.expression_id in scored
        )

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """Return the ids of the expressions that are scored in the frame."""
        original_id, t = self._place(video_id)
        scored = {sample.expression_id for sample in self._scored(original_id, t)}
        return tuple(e for e in self.dataset.expression_ids(original_id) if e in scored)

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """Return the objects of the original video in the frame."""
        original_id, t = self._place(video_id)
        truth = self._truth(original_id)
        if truth is None:
            return None
        ids = tuple(_numbered(object_id, t) for object_id in truth.object_ids)
        return GroundTruth(ids, truth.masks.frames(t, t + 1), np.ones(1, bool))

    def kind(self, video_id: str, expression_id: str) -> str | None:
        """Return the kind of the original expression."""
        return self.dataset.kind(self._place(video_id)[0], expression_id)

    def samples(self, video_id: str) -> tuple[Sample, ...]:
        """Return the samples of the frame, under the image ids of the benchmark."""
        return tuple(replace(sample, video_id=video_id, t=0) for sample in self._scored(*self._place(video_id)))

    def check(self) -> Iterator[str]:
        """Yield the faults of the original split."""
        return self.dataset.check()

    def _scored(self, original_id: str, t: int) -> list[Sample]:
        return [sample for sample in self.dataset.samples(original_id) or () if sample.t == t]

    def _place(self, video_id: str) -> tuple[str, int]:
        """The id of the original video, and the frame. Raises InputError if it is not one of the split's."""
        original_id, between, number = video_id.rpartition(BETWEEN)
        t = int(number) - 1 if number.isdecimal() and not number.startswith("0") else -1
        if not between or t < 0 or not self._scored(original_id, t):
            raise InputError(f"{self.root}: no scored frame {video_id!r} in split {self.split}; give <video>{BETWEEN}<number>")
        return original_id, t


def _numbered(identifier: str, t: int) -> str:
    return f"{identifier}{BETWEEN}{t + 1}"
