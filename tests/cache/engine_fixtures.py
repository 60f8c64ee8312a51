"""Trackers and datasets for the tests of engines, such as a tracker whose process is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from store_fixtures import Tiny, TinyTracker

from rvos_cache.errors import InputError
from rvos_cache.trackers.planned import PlannedBytes
from rvos_cache.types import Expression, TrackSet, Video


class Dying(TinyTracker):
    """TinyTracker in a process that is killed at video `dies`, `lives` times, counted by the files in the folder `graves`."""

    class Settings(TinyTracker.Settings):
        dies: str = ""
        lives: int = 1
        graves: str = ""

    settings: Dying.Settings

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        if video.video_id == self.settings.dies:
            graves = Path(self.settings.graves)
            died = len(list(graves.iterdir()))
            if died < self.settings.lives:
                (graves / str(died)).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
        return super().track(video, expressions)


class Streaming(TinyTracker):
    """TinyTracker with a feature that it yields frame by frame. overlapped: whether two of its calls ever ran at once."""

    busy = threading.Lock()
    overlapped = False

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        with self._alone():
            tracks = super().track(video, expressions)
        features: np.ndarray = tracks.features["map"]
        return replace(tracks, features={"map": self._frames(features)})

    def _frames(self, features: np.ndarray) -> Iterator[np.ndarray]:
        for frame in features:
            with self._alone():
                time.sleep(0.002)
            yield frame

    def _alone(self) -> threading.Lock:
        if self.busy.locked():
            Streaming.overlapped = True
        return self.busy


class Elsewhere(Tiny):
    """Two videos on the machine of the tests, an error on a worker."""

    def video_ids(self) -> tuple[str, ...]:
        if "pytest" not in sys.modules:
            raise InputError(f"{self.root}: the dataset is not on this machine")
        return ("v00", "v01")


class Large(TinyTracker):
    """Stores one or two bytes per pixel and frame, which it reports before it runs."""

    class Settings(TinyTracker.Settings):
        keep: Literal["half", "all"] = "all"

    settings: Large.Settings

    def planned_bytes(self, videos: Iterable[tuple[tuple[int, int], int]]) -> PlannedBytes:
        pixels = sum(size[0] * size[1] * frames for size, frames in videos)
        return PlannedBytes("keep", self.settings.keep, {"half": pixels, "all": 2 * pixels})


class Hashed(TinyTracker):
    """Weights whose digest differs in each process."""

    def weight_hashes(self) -> dict[str, str]:
        return {"weights.bin": str(os.getpid())}
