"""Masks of tensors as runs. On a GPU their runs are found there: only the positions where masks change are copied to the host.

A mask of 720x1280 is 922 kB of pixels and takes a processor 1 to 2 ms to encode; its runs are some hundred numbers.
Letters: K masks, H W pixels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks
from rvos_cache.system.gpu_kernels import has_triton

CAPACITY = 1 << 15
"""Changes of a mask that are copied as positions; a batch of masks with more on average, which is noise, is copied as pixels."""


def encode_masks(masks: Tensor) -> RleMasks:
    """The masks (K, 1) of pixels (K, H, W): bool, or logits, which are in the mask above 0."""
    return Encoding(masks).result()


class Encoding:
    """Masks (K, H, W), as those of `encode_masks`, that a GPU encodes on its current stream; `result` waits for them in any thread.

    The masks must not change before. Masks of a CPU, and of a GPU without Triton, are encoded by `result`.
    """

    def __init__(self, masks: Tensor) -> None:
        self.runs = _Runs(masks.contiguous()) if masks.is_cuda and masks.numel() and has_triton() else None
        self.pixels = _pixels(masks) if self.runs is None else None

    def result(self) -> RleMasks:
        """The masks (K, 1)."""
        if self.runs is not None:
            return self.runs.result()
        assert self.pixels is not None
        return _from_pixels(self.pixels)


class _Runs:
    """The positions where masks (K, H, W), contiguous, change, on their way to the host."""

    def __init__(self, masks: Tensor) -> None:
        from rvos_cache.mask_encoding import kernels

        count, height, width = masks.shape
        self.masks = masks
        self.positions = torch.empty(count * min(CAPACITY, height * width), dtype=torch.int32, device=masks.device)
        stops = torch.empty(count, dtype=torch.int32, device=masks.device)
        kernels.flips(masks, stops, self.positions)
        self.stops = torch.empty(count, dtype=torch.int32, pin_memory=True).copy_(stops, non_blocking=True)
        self.ready = torch.cuda.Event()
        self.ready.record(torch.cuda.current_stream(masks.device))

    def result(self) -> RleMasks:
        """The masks (K, 1)."""
        self.ready.synchronize()
        count, stream = int(self.stops[-1]), _copy_stream(self.masks.device)
        with torch.cuda.stream(stream):
            if count > len(self.positions):
                return _from_pixels(_pixels(self.masks))
            positions = torch.empty(count, dtype=torch.int32, pin_memory=True)
            positions.copy_(self.positions[:count], non_blocking=True)
            stream.synchronize()
        return from_changes(positions.numpy(), self.stops.numpy(), (self.masks.shape[1], self.masks.shape[2]))


@cache
def _copy_stream(device: Any) -> torch.cuda.Stream:
    """Of the copies to the host, which do not wait for what is queued on the current stream."""
    return torch.cuda.Stream(device)


def _pixels(masks: Tensor) -> Tensor:
    """Pixels (K, H, W) bool; a GPU also brings them into the order of runs, column by column, which takes a processor longer."""
    inside = masks if masks.dtype == torch.bool else masks > 0
    return inside.transpose(1, 2).contiguous().transpose(1, 2) if masks.is_cuda else inside


def _from_pixels(pixels: Tensor) -> RleMasks:
    """The masks (K, 1)."""
    return RleMasks.from_dense(pixels.cpu().numpy()[:, None])


def from_changes(positions: NDArray[np.integer], stops: NDArray[np.integer], size: tuple[int, int]) -> RleMasks:
    """Masks (K, 1) from the pixels, counted column by column, that differ from the pixel before them; before the first one is
    background. stops: (K,), the end of each mask's part of `positions`."""
    stops = stops.astype(np.int64)
    ends = np.insert(positions.astype(np.int64), stops, size[0] * size[1])
    return RleMasks.from_runs(MaskRuns(ends, stops + np.arange(1, len(stops) + 1), (len(stops), 1), size))
