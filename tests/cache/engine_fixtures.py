"""Trackers whose process dies, for the tests of engines; named to the program as package.module:Class."""

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
    """TinyTracker in a process that is killed at video `dies`; as often as `lives` says, counted by files in `graves`."""

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
    """TinyTracker whose feature comes frame by frame, and which notes whether two of its calls ever ran at once."""

    busy = threading.Lock()
    overlapped = False

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        with self._alone():
            made = super().track(video, expressions)
        features: np.ndarray = made.features["map"]
        return replace(made, features={"map": self._frames(features)})

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
    """Two videos on the machine of the tests, none on a worker's."""

    def video_ids(self) -> tuple[str, ...]:
        if "pytest" not in sys.modules:
            raise InputError(f"{self.root}: the dataset does not lie here")
        return ("v00", "v01")


class Large(TinyTracker):
    """Keeps so many bytes of each pixel of each frame; knows it before it runs."""

    class Settings(TinyTracker.Settings):
        keep: Literal["half", "all"] = "all"

    settings: Large.Settings

    def planned_bytes(self, videos: Iterable[tuple[tuple[int, int], int]]) -> PlannedBytes:
        pixels = sum(size[0] * size[1] * frames for size, frames in videos)
        return PlannedBytes("keep", self.settings.keep, {"half": pixels, "all": 2 * pixels})


class Hashed(TinyTracker):
    """Weights that are others in each process."""

    def weight_hashes(self) -> dict[str, str]:
        return {"weights.bin": str(os.getpid())}
