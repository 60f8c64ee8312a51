"""Frames as pixels: a stored uint8 feature of a cache, or the dataset that a card's root leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rvos_cache.corruptions import corrupt_video
from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.identity import frames_digest
from rvos_cache.store import Card
from rvos_cache.types import Video
from rvos_select.data.caches import TrackSource
from rvos_select.data.features import Dims, Index, StoredFeature, frame_numbers

PIXEL_DIMS = ("T", 3)
"""First and last dimension of a stored feature of pixels; its dtype is uint8."""


class PixelArray(Protocol):
    """The frames of a video, uint8 RGB (T, H, W, 3), at the size of the video or another one."""

    @property
    def dims(self) -> Dims: ...

    @property
    def size(self) -> tuple[int, int]:
        """(H, W). Raises InputError when the frames cannot be read."""

    def __len__(self) -> int: ...

    def select(self, index: Index) -> Tensor:
        """The frames `index["T"]`. Raises InputError when one cannot be read."""


@dataclass(frozen=True)
class DatasetPixels:
    """The frames of a video of the dataset, decoded when they are requested.

    digest: of the frames that were tracked, None: unknown; path: of the cache, for errors; clean: the video without corruption.
    """

    video: Video
    clean: Video
    path: str
    digest: str | None
    dims: Dims = ("T", "H", "W", 3)

    def __len__(self) -> int:
        return len(self.video)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), that of the video."""
        return self.video.size

    def select(self, index: Index) -> Tensor:
        """As PixelArray. Raises InputError too, at the first call, when the dataset has other frames than were tracked."""
        _ = self._is_checked
        frames = frame_numbers(index, len(self.video))
        out = np.empty((len(frames), *self.video.size, 3), np.uint8)
        for i, t in enumerate(frames):
            out[i] = self.video.read(int(t))
        return torch.from_numpy(out)

    @cached_property
    def _is_checked(self) -> bool:
        # When frames are first read, because the bytes of a whole dataset take minutes to read.
        if self.digest not in (None, frames_digest(self.clean)):
            raise InputError(
                f"{self.path}, video {self.clean.video_id}: tracked in other pictures than the frames of the dataset are now; "
                "extract it again"
            )
        return True


class StoredPixels(StoredFeature):
    """The frames of a video as a feature of a cache; they may have another size than the video."""

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W). Reads the first frame."""
        height, width = self.select({"T": [0]}).shape[1:3]
        return height, width


def open_pixels(tracks: TrackSource, video_id: str) -> PixelArray:
    """The pixels of a video: its only uint8 feature of dims (T, H, W, 3), else the frames of the dataset at the card's root.

    Raises InputError when several features hold pixels, or there is no feature and the dataset is not where the card says, or
    it holds other frames of the video than the cache.
    """
    names = [str(s["name"]) for s in tracks.feature_specs(video_id) if is_pixels(s["dims"], s["dtype"])]
    if len(names) > 1:
        raise InputError(f"{tracks.caches[0].path}: the features {', '.join(names)} all hold pixels; give a cache with one")
    if names:
        return StoredPixels(tracks, video_id, names[0])
    card, info = tracks.caches_of[video_id][0].card, tracks.info(video_id)
    where = f"{tracks.caches_of[video_id][0].path}, video {video_id}"
    dataset = _dataset(card.dataset, card.root, card.split)
    if dataset is None:
        raise InputError(
            f"{where}: the selector reads pixels, no uint8 feature (T, H, W, 3) holds them, and the dataset is not at "
            f"{card.root or '(the card names no root)'}; bring it back, or give a cache of frames"
        )
    video = dataset.video(video_id)
    if (video.frame_names, video.size) != (info.frame_names, info.size):
        raise InputError(
            f"{where}: holds {info.frames} frames of {info.size}, {card.root} has {len(video)} of {video.size}; extract it again"
        )
    corruption = card.extra.get("corrupt")
    path = tracks.caches_of[video_id][0].path
    return DatasetPixels(corrupt_video(video, corruption) if corruption else video, video, path, info.frames_digest)


def is_pixels(dims: Sequence[str | int], dtype: str) -> bool:
    """Whether a feature holds frames: uint8, first axis T, last one 3, two in between."""
    return dtype == "uint8" and len(dims) == 4 and (dims[0], dims[-1]) == PIXEL_DIMS


def card_has_pixels(card: Card) -> bool:
    """Whether a cache holds frames as a feature."""
    return any(is_pixels(spec["dims"], spec["dtype"]) for spec in card.feature_specs)


@lru_cache(maxsize=16)
def _dataset(name: str, root: str, split: str) -> Dataset | None:
    try:
        return open_dataset(name, Path(root), split) if root else None
    except InputError:
        return None
