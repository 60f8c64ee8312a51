"""Frames of an array that is too large for memory: written once in order, read many times."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import naming

IN_MEMORY = 1 << 28
"""Bytes from which a spool lies in a temporary file instead of memory."""


class Spool:
    """Frames of one shape and dtype. It is gone with the last reference to it."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.frames = 0
        self._file: Any = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 closed with the spool

    def __len__(self) -> int:
        return self.frames

    def append(self, frames: NDArray[Any]) -> None:
        """More frames (t, *shape). Raises ValueError for another shape or dtype, OSError when the disk is full."""
        if frames.shape[1:] != self.shape or frames.dtype != self.dtype:
            raise ValueError(f"frames {frames.dtype} {frames.shape[1:]}, wanted {self.dtype} {self.shape}")
        with naming(Path(tempfile.gettempdir())):
            self._file.seek(self.frames * self._bytes)
            self._file.write(np.ascontiguousarray(frames).data)
        self.frames += len(frames)

    def __getitem__(self, t: int) -> NDArray[Any]:
        """Frame t, a copy that nothing else holds. Raises IndexError beyond the last."""
        self._file.seek(range(self.frames)[t] * self._bytes)
        return np.frombuffer(bytearray(self._file.read(self._bytes)), self.dtype).reshape(self.shape)

    @property
    def _bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


class SpooledFrames:
    """Some frames of a spool, each seen through `change`: what a tracker hands over as a feature that is stored by frame.

    It can be run through again. shape, dtype: of the array that its frames make.
    """

    def __init__(
        self, spool: Spool, frames: Sequence[int], channels: int, change: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    ) -> None:
        self.shape = (len(frames), *spool.shape[:-1], channels)
        self.dtype = spool.dtype
        self._spool, self._frames, self._change = spool, frames, change

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for t in self._frames:
            frame = self._spool[t]
            yield frame if self._change is None else self._change(frame)
