"""The frames of a video in the model's input size, and the backbone's maps of all of them, which every text reads.

A frame of 360x640 has 4.9 MB of levels and, where masks are drawn from it, 5.5 (Swin-T) or 7.4 MB (Swin-B) of the map at stride 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from rvos_cache.media.resize import resize_frame
from rvos_cache.trackers.referdino.upstream import Upstream
from rvos_cache.trackers.sam2.preprocess import normalise
from rvos_cache.trackers.spool import ArraySpool
from rvos_cache.types import Video

IN_MEMORY = 1 << 30
"""Bytes of a video's maps that stay in host memory; the others lie in a temporary file."""


Resizing = Literal["video", "image"]
"""How frames become the model's input: see `input_sizes`."""
LONGEST, MULTIPLE = 640, 32
"""image: the most pixels of the longer side, and what the sides of a padded frame are multiples of. Source: released code."""


def resized_size(size: tuple[int, int], short_side: int, longest: int | None = None) -> tuple[int, int]:
    """(h, w) of frames of `size` (H, W) whose shorter side becomes `short_side`, or less so that the longer one is at most `longest`;
    the longer one is rounded down, as by torchvision and in DETR's transforms."""
    short, long = min(size), max(size)
    if longest is not None and long / short * short_side > longest:
        short_side = max(1, round(longest * short / long))
    longer = max(1, int(short_side * long / short))
    return (short_side, longer) if size[0] <= size[1] else (longer, short_side)


def input_sizes(size: tuple[int, int], short_side: int, resizing: Resizing) -> tuple[tuple[int, int], tuple[int, int]]:
    """The sizes (h, w) of a resized frame of `size` (H, W), and of it with its padding.

    video: the longer side is not limited and there is no padding; image: it is at most LONGEST, sides are padded to MULTIPLE.
    """
    if resizing == "video":
        resized = resized_size(size, short_side)
        return resized, resized
    h, w = resized_size(size, short_side, LONGEST)
    return (h, w), (-(-h // MULTIPLE) * MULTIPLE, -(-w // MULTIPLE) * MULTIPLE)


def passes(frames: int, per_pass: int) -> list[range]:
    """The frames of each pass of at most `per_pass` frames."""
    return [range(start, min(start + per_pass, frames)) for start in range(0, frames, per_pass)]


class FrameMaps:
    """The maps of all frames of a video, at most IN_MEMORY bytes of them in memory.

    Each frame runs through the backbone once. with_stage1: keep the map at stride 4 too; on_pass: called with the number of frames
    after each pass. Attributes: shapes, (h, w) of each level; resized, padded: sizes of the frames, see `input_sizes`; real: bool
    (h, w), True in the cells at stride 4 that are not padding.
    Raises InputError like `Upstream.encode`, OSError if the temporary file cannot be written.
    """

    def __init__(
        self,
        upstream: Upstream,
        video: Video,
        short_side: int,
        per_pass: int,
        with_stage1: bool,
        resizing: Resizing = "video",
        on_pass: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.upstream, self.parts = upstream, passes(len(video), per_pass)
        self._arrays = ArraySpool(IN_MEMORY)
        self.resized, self.padded = input_sizes(video.size, short_side, resizing)
        (h, w), (height, width) = self.resized, self.padded
        real = torch.zeros(self.padded, dtype=torch.bool)
        real[:h, :w] = True
        for part in self.parts:
            frames = np.stack([resize_frame(video.read(t), self.resized) for t in part])
            images = normalise(torch.from_numpy(frames).permute(0, 3, 1, 2))
            maps = upstream.encode(nn.functional.pad(images, (0, width - w, 0, height - h)), real)
            self.real = nn.functional.interpolate(real[None, None].float(), size=maps.stage1.shape[2:])[0, 0].bool()
            self.shapes = [(level.shape[2], level.shape[3]) for level in maps.levels]
            stored = maps.levels + [maps.stage1] * with_stage1
            for name, one in enumerate(stored):
                for t, frame in zip(part, one.cpu().numpy()):
                    # A view would keep the frames of the whole pass in memory.
                    self._arrays[t, name] = frame.copy()
            on_pass(len(part))

    def __len__(self) -> int:
        return self.parts[-1].stop

    def levels(self, part: Sequence[int]) -> list[Tensor]:
        """The levels of the frames `part`, on the model's device."""
        return [self._stack(part, name) for name in range(len(self.shapes))]

    def stage1(self, part: Sequence[int]) -> Tensor:
        """The map at stride 4 of the frames `part`, (K, c, h, w), on the model's device."""
        return self._stack(part, len(self.shapes))

    def _stack(self, part: Sequence[int], name: int) -> Tensor:
        return torch.from_numpy(np.stack([self._arrays[t, name] for t in part])).to(self.upstream.device)
