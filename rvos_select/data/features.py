"""Arrays of a video that are too large to hold for all videos: frames of them are read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_select.data.caches import TrackSource


class StoredFeature:
    """The feature `name` of a video, (T, ...), on disk. As `rvos_select.data.batch.FrameArray`.

    A feature whose first dimension is another letter than T holds some frames only: the feature of that dimension alone says
    which. Raises InputError when no cache, or more than one, has the feature, or its first dimension is none of frames.
    """

    def __init__(self, tracks: TrackSource, video_id: str, name: str) -> None:
        self.tracks, self.video_id, self.name = tracks, video_id, name
        self.card = tracks.having(video_id, name).card
        spec = next(s for s in self.card.feature_specs if s["name"] == name)
        self.by_frame, self.letter = bool(spec["by_frame"]), spec["dims"][0]
        self.frames = tracks.info(video_id).frames
        self._index = None if self.letter == "T" else self._named_by(self.letter)

    def _named_by(self, letter: object) -> str:
        others = [s for s in self.card.feature_specs if s["name"] != self.name]
        found = [s["name"] for s in others if list(s["dims"]) == [letter] and letter != "N"]
        if len(found) != 1 or not isinstance(letter, str):
            raise InputError(
                f"video {self.video_id}: the feature {self.name!r} of tracker {self.card.producer} is not by frames; its first "
                f"dimension is {letter!r}, wanted T or a letter that one other feature lists the frames of"
            )
        return str(found[0])

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """int64, ascending: the frames that are held, all T or some."""
        if self._index is None:
            return np.arange(self.frames)
        return self.tracks.feature(self.video_id, self._index).astype(np.int64)

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, frames: slice, /) -> Tensor:
        return self.take(range(self.frames)[frames])

    def take(self, frames: Sequence[int]) -> Tensor:
        """The frames of these numbers in that order, (t, ...), as stored. Raises InputError for one that is not held."""
        places = {int(frame): place for place, frame in enumerate(self.kept)}
        lost = [t for t in frames if int(t) not in places]
        if lost:
            raise InputError(
                f"video {self.video_id}: the cache holds {self.name!r} of {len(places)} of {self.frames} frames, not of frame "
                f"{lost[0]}; extract this split with another profile, one that keeps all frames"
            )
        rows = [places[int(t)] for t in frames]
        if not self.by_frame or not rows:
            whole = self.tracks.feature(self.video_id, self.name)[rows]
            return torch.from_numpy(np.ascontiguousarray(whole))
        first = self.tracks.feature(self.video_id, self.name, slice(rows[0], rows[0] + 1))
        # Read into its place: a clip's mask features are tens of megabytes.
        out = torch.empty(len(rows), *first.shape[1:], dtype=torch.from_numpy(first[:0].copy()).dtype)
        for place, row in enumerate(rows):
            if place and row == rows[place - 1]:
                out[place] = out[place - 1]
                continue
            held = self.tracks.feature(self.video_id, self.name, slice(row, row + 1)) if place else first
            out[place] = torch.from_numpy(np.ascontiguousarray(held[0]))
        return out
