"""Named arrays of a video and the one place that selects along their axes.

An array has its dims in letters (`rvos_cache.types`). A row of a batch keeps of each letter: N its candidate tracks, T the frames
of its clip, E its own expression, A its own objects. Every other letter, and a number, is kept whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_select.data.caches import TrackSource
from rvos_select.data.cards import frame_list

Dims = tuple[str | int, ...]
Index = Mapping[str, Sequence[int] | Tensor | int]
"""Letter -> the positions to keep; an int keeps one and removes the axis."""


def take(array: Tensor, dims: Dims, index: Index) -> Tensor:
    """`array` with the positions `index` along each of its letters."""
    for axis in reversed(range(len(dims))):
        letter = dims[axis]
        if letter not in index:
            continue
        positions = index[letter]  # type: ignore[index]
        if isinstance(positions, int):
            array = array.select(axis, positions)
            continue
        chosen = torch.as_tensor(positions, dtype=torch.long)
        if not torch.equal(chosen, torch.arange(array.shape[axis])):
            array = array.index_select(axis, chosen)
    return array


def kept_dims(dims: Dims, index: Index) -> Dims:
    """The dims that are left after `take`."""
    return tuple(d for d in dims if not isinstance(index.get(d, ()), int))  # type: ignore[arg-type]


class NamedArray(Protocol):
    """An array of a video. dims: its axes, letters or numbers."""

    @property
    def dims(self) -> Dims: ...

    def select(self, index: Index) -> Tensor:
        """The positions `index` along each letter. Raises InputError for a frame that the cache does not hold."""


class FrameSource(NamedArray, Protocol):
    """A named array that is read by frames: its first axis is T."""

    def __len__(self) -> int:
        """T."""


def frame_numbers(index: Index, length: int) -> Sequence[int]:
    """The frames that `index` keeps; without an entry T all `length`."""
    frames = index.get("T", range(length))
    if isinstance(frames, int):
        raise ValueError(f"an index keeps one frame, {frames}, where frames are read; give a sequence")
    return frames.tolist() if isinstance(frames, Tensor) else frames


@dataclass(frozen=True)
class MemoryArray:
    """An array in memory. array: a Tensor with the axes `dims`."""

    array: Tensor
    dims: Dims

    def select(self, index: Index) -> Tensor:
        """As NamedArray."""
        return take(self.array, self.dims, index)


class StoredFeature:
    """The feature `name` of a video, read from disk by frames: T is its first axis, also where the cache has it elsewhere.

    A feature whose first dimension is another letter than T, N, E and A holds some frames only: the feature of that dimension
    alone lists their numbers. Raises InputError when no cache has the feature or it has no axis of frames.
    """

    def __init__(self, tracks: TrackSource, video_id: str, name: str) -> None:
        self.tracks, self.video_id, self.name = tracks, video_id, name
        spec = tracks.feature_spec(video_id, name)
        stored: Dims = tuple(spec["dims"])
        self.length = tracks.info(video_id).frames
        dims = {str(s["name"]): tuple(s["dims"]) for s in tracks.feature_specs(video_id)}
        self._listed = frame_list(name, dims, f"video {video_id}")
        self._axis = stored.index("T") if self._listed is None else 0
        self.by_frame = bool(spec["by_frame"]) and self._axis == 0
        self.dims: Dims = ("T", *stored[: self._axis], *stored[self._axis + 1 :])

    @cached_property
    def frames(self) -> NDArray[np.int64]:
        """int64, ascending: the frames that the cache holds, all T or some."""
        if self._listed is None:
            return np.arange(self.length)
        return self.tracks.feature(self.video_id, self._listed).astype(np.int64)

    def __len__(self) -> int:
        return self.length

    def select(self, index: Index) -> Tensor:
        """As NamedArray; without an entry T all frames."""
        frames = frame_numbers(index, self.length)
        others = {letter: positions for letter, positions in index.items() if letter != "T"}
        return take(self._read(frames), self.dims, others)

    def lazy(self, index: Index) -> FrameReader:
        """The same array with the positions `index`, read when frames are requested."""
        return FrameReader(self, index)

    def _read(self, frames: Sequence[int]) -> Tensor:
        """(t, ...) as stored, in the order of `frames`. Raises InputError for a frame that the cache does not hold."""
        positions = {int(frame): position for position, frame in enumerate(self.frames)}
        absent = [t for t in frames if int(t) not in positions]
        if absent:
            raise InputError(
                f"video {self.video_id}: the cache holds {self.name!r} of {len(positions)} of {self.length} frames, not of frame "
                f"{absent[0]}; extract this split with another profile, one that keeps all frames"
            )
        rows = [positions[int(t)] for t in frames]
        if not self.by_frame or not rows:
            whole = np.moveaxis(self.tracks.feature(self.video_id, self.name), self._axis, 0)[rows]
            return torch.from_numpy(np.ascontiguousarray(whole))
        first = self.tracks.feature(self.video_id, self.name, slice(rows[0], rows[0] + 1))
        # Read into one tensor: a clip's mask features are tens of megabytes.
        out = torch.empty(len(rows), *first.shape[1:], dtype=torch.from_numpy(first[:0].copy()).dtype)
        for i, row in enumerate(rows):
            if i and row == rows[i - 1]:
                out[i] = out[i - 1]
                continue
            frame = self.tracks.feature(self.video_id, self.name, slice(row, row + 1)) if i else first
            out[i] = torch.from_numpy(np.ascontiguousarray(frame[0]))
        return out


@dataclass(frozen=True)
class FrameReader:
    """A stored feature of the frames `index["T"]` (default: all), with fixed positions along its other letters. A `FrameArray`.

    Its first axis is indexed like that of a tensor; only the requested frames are read, and are put on `device`.
    """

    feature: FrameSource
    index: Index
    device: torch.device | str = "cpu"

    @cached_property
    def numbers(self) -> Sequence[int]:
        """The frames of the video that this array holds, in order."""
        return frame_numbers(self.index, len(self.feature))

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def shape(self) -> torch.Size:
        """(T, ...). Reads the first frame."""
        return torch.Size((len(self), *self[:1].shape[1:]))

    def __getitem__(self, frames: int | slice | Sequence[int] | Sequence[bool] | Tensor, /) -> Tensor:
        numbers = torch.as_tensor(self.numbers, dtype=torch.long)[_positions(frames)]
        values = self.feature.select({**self.index, "T": numbers.reshape(-1)})
        if torch.device(self.device).type == "cuda":
            # From pinned memory, so that the host does not wait until the GPU has done what is queued.
            values = values.pin_memory()
        values = values.to(self.device, non_blocking=True)
        return values[0] if numbers.ndim == 0 else values

    def __iter__(self) -> Iterator[Tensor]:
        return (self[t] for t in range(len(self)))

    def to(self, device: torch.device | str) -> FrameReader:
        """The same array, whose frames are put on `device`."""
        return replace(self, device=device)


def _positions(frames: Any) -> Any:
    """An index along T for a tensor of frame numbers. Raises IndexError for an index of several axes: those are not read alone."""
    if isinstance(frames, tuple) or frames is None or frames is Ellipsis:
        raise IndexError(
            f"an array that is read by frames takes an index of its first axis alone, not {frames!r}; array[:][index]"
        )
    return frames.cpu() if isinstance(frames, Tensor) else frames


def load_feature(tracks: TrackSource, video_id: str, name: str) -> MemoryArray:
    """The feature `name` of a video in memory."""
    value: NDArray[Any] = tracks.feature(video_id, name)
    return MemoryArray(torch.from_numpy(np.ascontiguousarray(value)), tuple(tracks.feature_spec(video_id, name)["dims"]))


def load_measurement(tracks: TrackSource, video_id: str, name: str) -> MemoryArray:
    """The measurement `name` of a video in memory. Raises InputError where the split hides its ground truth."""
    value: NDArray[Any] = tracks.measurement(video_id, name)
    return MemoryArray(torch.from_numpy(np.ascontiguousarray(value)), tuple(tracks.measurement_spec(video_id, name)["dims"]))
