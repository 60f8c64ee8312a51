"""Frames of an array that may not fit in memory: appended in order, read many times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.trackers.spool import ArraySpool

IN_MEMORY = 1 << 28
"""Bytes of a spool that are kept in memory; the rest is kept in a temporary file."""


class Spool:
    """Frames of one shape and dtype, removed with the last reference to the spool."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.frames = 0
        self._arrays = ArraySpool(IN_MEMORY)

    def __len__(self) -> int:
        return self.frames

    def append(self, frames: NDArray[Any]) -> None:
        """Append frames (t, *shape).

        Raises ValueError for another shape or dtype, OSError if the temporary file cannot be written.
        """
        if frames.shape[1:] != self.shape or frames.dtype != self.dtype:
            raise ValueError(f"Spool: expected frames {self.dtype} {self.shape}, got {frames.dtype} {frames.shape[1:]}")
        for frame in frames:
            # A view would keep all frames of the pass in memory.
            self._arrays[self.frames] = frame.copy()
            self.frames += 1

    def __getitem__(self, t: int) -> NDArray[Any]:
        """A copy of frame t. Raises IndexError beyond the last frame."""
        return self._arrays[range(self.frames)[t]].copy()


class SpooledFrames:
    """Some frames of a spool, each passed through `transform`: a feature that is stored frame by frame.

    It can be iterated more than once. shape, dtype: of the array that its frames form.
    """

    def __init__(
        self, spool: Spool, frames: Sequence[int], channels: int, transform: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    ) -> None:
        self.shape = (len(frames), *spool.shape[:-1], channels)
        self.dtype = spool.dtype
        self._spool, self._frames, self._transform = spool, frames, transform

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for t in self._frames:
            frame = self._spool[t]
            yield frame if self._transform is None else self._transform(frame)
