"""The frames themselves as a feature, without tracks: for selectors that run an image tower of their own on augmented frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from rvos_cache.masks import RleMasks
from rvos_cache.media.resize import resize_frame, shortest_edge
from rvos_cache.settings import Settings, square_or_short_side
from rvos_cache.trackers.base import Tracker
from rvos_cache.trackers.planned import PlannedBytes, Size
from rvos_cache.types import Expression, FeatureSpec, TrackSet, Video

RGB = FeatureSpec("rgb", ("T", "h", "w", 3), "uint8", by_frame=True)
PLANNED: tuple[dict[str, int], ...] = (
    {"short_side": 0},
    {"short_side": 480},
    {"short_side": 448},
    {"short_side": 360},
    {"square": 448},
    {"square": 320},
)
"""Sizes of frames whose bytes `plan` lists beside that of the run."""
CRC_BYTES = 4
"""Bytes of the checksum behind each stored frame."""


class FramesSettings(Settings):
    """The settings of the `frames` tracker."""

    short_side: int = Field(480, ge=0)
    """Pixels of a stored frame's shorter side, at the same aspect ratio; 0: the frame as it is, whatever its size. Source: the largest
    side of SSA's training is 512, its test side 448 or 480."""
    long_side: int = Field(1333, ge=1)
    """Largest number of pixels of a resized frame's longer side. Source: SSA's configurations, detectron2's default."""
    square: int = Field(0, ge=0)
    """Pixels of both sides of a stored frame, at any aspect ratio; 0: off. Give it or short_side."""
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    """Pillow's filter. BEiT-3 reads frames by bicubic, SSA by bilinear. Source: their released code."""

    @model_validator(mode="before")
    @classmethod
    def _square_or_short_side(cls, values: Any) -> Any:
        return square_or_short_side(values)

    def stored_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the stored frames of a video of `size` (H, W)."""
        if self.square:
            return self.square, self.square
        return shortest_edge(size, self.short_side, self.long_side) if self.short_side else size


class FramesTracker(Tracker):
    """N = 0 tracks, and every frame of the video as the feature `rgb`, uint8 (T, h, w, 3)."""

    Settings: type[Settings] = FramesSettings
    # There are no tokens.
    channels = 0
    feature_specs = (RGB,)

    def planned_bytes(self, videos: Iterable[Size]) -> PlannedBytes:
        """Bytes of the frames of `videos` at the size of this run and at others."""
        current = {"square": self.settings.square} if self.settings.square else {"short_side": self.settings.short_side}
        options = [current, *(option for option in PLANNED if option != current)]
        sizes_and_frames = list(videos)
        sizes = {}
        for option in options:
            # A run at its own size keeps its long side; square makes it unused.
            settings = FramesSettings(**{**option, "long_side": self.settings.long_side})
            (assigned,) = (f"{name}={value}" for name, value in option.items())
            sizes[assigned] = sum(
                frames * (3 * prod(settings.stored_size(size)) + CRC_BYTES) for size, frames in sizes_and_frames
            )
        return PlannedBytes("", next(iter(sizes)), sizes)

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """No tracks, and the frames, which are read while they are written: one is in memory at a time."""
        frames = StoredFrames(video, self.settings.stored_size(video.size), self.settings.resample)
        no_masks = RleMasks.empty(0, len(video), video.size)
        return TrackSet.from_masks(np.zeros((0, len(video), 0), np.float16), no_masks, features={RGB.name: frames})


class StoredFrames:
    """The frames of a video, resized to `size` (h, w) by a filter of Pillow's. It can be iterated more than once. shape, dtype: of the
    array they form."""

    def __init__(self, video: Video, size: tuple[int, int], resample: str = "bilinear") -> None:
        self.shape, self.dtype = (len(video), *size, 3), np.dtype(np.uint8)
        self._video, self._size, self._resample = video, size, Image.Resampling[resample.upper()]

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for t in range(len(self)):
            yield resize_frame(self._video.read(t), self._size, self._resample)
