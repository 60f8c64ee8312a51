"""Image features of a whole video, which every batch of prompts reads in both directions.

At 1024 pixels they take 8.4 MB per frame in bfloat16. Features that do not fit on the GPU stay in pinned host memory, and those
that do not fit there in a temporary file. Each pass reads all frames in order, so the location of a frame is fixed: a cache of
the most recently used frames would evict every frame before its next use.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvos_cache.trackers.sam2.prefetch import prefetch

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Features:
    """The image encoder's maps of one frame, on the model's device: fine (1, c, S/4, S/4) and (1, c', S/8, S/8), which the mask
    decoder adds, and top (1, C, S/16, S/16)."""

    fine: tuple[Tensor, ...]
    top: Tensor

    @classmethod
    def unpack(cls, flat: Tensor, shapes: Sequence[Shape]) -> Features:
        """Views of the levels `shapes` that `flat` has one after the other."""
        parts = torch.split(flat, [prod(shape) for shape in shapes])
        *fine, top = (part.view(1, h, w, c).permute(0, 3, 1, 2) for part, (c, h, w) in zip(parts, shapes))
        return cls(tuple(fine), top)

    @staticmethod
    def pack(levels: Sequence[Tensor]) -> Tensor:
        """Levels (c, h, w) one after the other, each with its channels last."""
        return torch.cat([level.permute(1, 2, 0).reshape(-1) for level in levels])

    def to(self, dtype: Any) -> Features:
        """The same maps in `dtype`."""
        return Features(tuple(level.to(dtype) for level in self.fine), self.top.to(dtype))


class FeatureStore:
    """The features of T frames, each level of `shapes` (c, h, w), finest first, in `dtype`; use it in a `with`.

    device_bytes: the first frames up to this size stay on `device`; host_bytes: the next ones in host memory; the rest in a file
    without a name in the temporary folder (TMPDIR), which the system deletes when the store is closed or the process ends.
    Raises OSError if the disk has not enough space.
    """

    def __init__(self, frames: int, shapes: Sequence[Shape], dtype: Any, device: Any, device_bytes: int, host_bytes: int) -> None:
        self.shapes, self.dtype, self.device = tuple(shapes), dtype, device
        self.sizes = [prod(shape) for shape in self.shapes]
        self.frame_bytes = sum(self.sizes) * dtype.itemsize
        self.on_device = min(frames, device_bytes // self.frame_bytes)
        self.in_host = min(frames - self.on_device, host_bytes // self.frame_bytes)
        self.on_disk = frames - self.on_device - self.in_host
        self.in_memory: dict[int, Tensor] = {}
        self.file: Any = None

    def __enter__(self) -> FeatureStore:
        if self.on_disk:
            self.file = tempfile.TemporaryFile(prefix="rvos-features-")
            # Allocate first: writing to a mapped file on a full disk kills the process instead of raising an error.
            os.posix_fallocate(self.file.fileno(), 0, self.on_disk * self.frame_bytes)
            self.map = np.memmap(self.file, np.uint8, "r+", shape=(self.on_disk, self.frame_bytes))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.in_memory.clear()
        if self.file is not None:
            del self.map
            self.file.close()

    def put(self, t: int, levels: Sequence[Tensor]) -> None:
        """Store the levels (c, h, w) of frame t."""
        flat = Features.pack(levels).to(self.dtype)
        row = t - self.on_device - self.in_host
        if row >= 0:
            self.map[row] = flat.cpu().view(torch.uint8).numpy()
        elif t < self.on_device:
            self.in_memory[t] = flat
        else:
            self.in_memory[t] = torch.empty_like(flat, device="cpu", pin_memory=self.device.type == "cuda")
            # The GPU reads it after it wrote it, in the order of its stream.
            self.in_memory[t].copy_(flat, non_blocking=True)

    def get(self, t: int) -> Features:
        """The features of frame t, on the device."""
        return Features.unpack(self.flat(t).to(self.device, non_blocking=True), self.shapes)

    def flat(self, t: int) -> Tensor:
        """The levels of frame t one after the other, where they are stored."""
        row = t - self.on_device - self.in_host
        return torch.from_numpy(self.map[row]).view(self.dtype) if row >= 0 else self.in_memory[t]

    def read(self, order: Iterable[int]) -> Iterator[Tensor]:
        """`flat` of the frames `order`; with a file each is read while its predecessor is used."""
        yield from prefetch(lambda t: self.flat(t).clone(), order, 1) if self.on_disk else map(self.flat, order)
