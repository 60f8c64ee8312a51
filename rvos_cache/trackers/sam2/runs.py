"""Masks as runs, found on the GPU: only the positions where masks change are copied, by a thread, while the GPU goes on.

A mask of 720x1280 is 922 kB of pixels and takes a processor 1 to 2 ms to encode; its runs are some hundred numbers.
Letters: K masks, H W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks
from rvos_cache.system.gpu_kernels import has_triton

CAPACITY = 1 << 15
"""Changes of a mask that are copied as positions; a batch of masks with more on average, which is noise, is copied as pixels."""


def finds_runs(masks: Tensor) -> bool:
    """Whether `GpuRuns` takes these masks."""
    return masks.is_cuda and masks.dtype == torch.float32 and has_triton()


class GpuRuns:
    """The runs of K masks of logits (K, H, W) float32, started on the current stream; `result` waits for them in any thread."""

    def __init__(self, logits: Tensor) -> None:
        from rvos_cache.trackers.sam2 import mask_kernels

        logits = logits.contiguous()
        count = len(logits)
        self.logits, self.size = logits, (logits.shape[1], logits.shape[2])
        self.positions = torch.empty(count * CAPACITY, dtype=torch.int32, device=logits.device)
        stops = torch.empty(count, dtype=torch.int32, device=logits.device)
        mask_kernels.flips(logits, stops, self.positions)
        self.stops = torch.empty(count, dtype=torch.int32, pin_memory=True).copy_(stops, non_blocking=True)
        self.ready = torch.cuda.Event()
        self.ready.record()

    def result(self, stream: torch.cuda.Stream) -> RleMasks:
        """The masks (K, 1); copies on `stream`."""
        self.ready.synchronize()
        count = int(self.stops[-1])
        with torch.cuda.stream(stream):
            if count > len(self.positions):
                return encode_pixels((self.logits > 0).transpose(1, 2).contiguous())
            positions = torch.empty(count, dtype=torch.int32, pin_memory=True)
            positions.copy_(self.positions[:count], non_blocking=True)
            stream.synchronize()
        return from_changes(positions.numpy(), self.stops.numpy(), self.size)


def encode_masks(logits: Tensor) -> RleMasks:
    """The masks (K, 1) of logits (K, H, W)."""
    if finds_runs(logits):
        return GpuRuns(logits).result(torch.cuda.current_stream())
    return encode_pixels((logits > 0).transpose(1, 2).contiguous())


def encode_pixels(columns: Tensor) -> RleMasks:
    """The masks (K, 1) of pixels (K, W, H) bool, contiguous: runs go column by column."""
    return RleMasks.from_dense(columns.cpu().numpy().transpose(0, 2, 1)[:, None])


def from_changes(positions: NDArray[np.integer], stops: NDArray[np.integer], size: tuple[int, int]) -> RleMasks:
    """Masks (K, 1) from the pixels, counted column by column, that differ from the pixel before them; before the first one is
    background. stops: (K,), the end of each mask's part of `positions`."""
    stops = stops.astype(np.int64)
    ends = np.insert(positions.astype(np.int64), stops, size[0] * size[1])
    return RleMasks.from_runs(MaskRuns(ends, stops + np.arange(1, len(stops) + 1), (len(stops), 1), size))
