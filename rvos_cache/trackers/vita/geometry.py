"""The geometry of frames, of the segmenter's input and of its stride-4 maps.

Letters: H W pixels of the frame, h w cells of the map, K masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.media.resize import resize_frame, shortest_edge

STRIDE = 4
"""Input pixels along the side of a cell."""
DIVISOR = 32
"""The input is padded to multiples of this many pixels."""
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
"""MEAN and DEVIATION of red, green and blue from 0 to 255, as in VITA's configurations (PIXEL_MEAN, PIXEL_STD)."""


@dataclass(frozen=True)
class FrameGeometry:
    """size: (H, W) of the frame; resized: of the frame in the input, at the same aspect ratio; padded: of the input."""

    size: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], short_side: int, long_side: int) -> FrameGeometry:
        """The shorter side becomes `short_side` pixels, or less so that the longer side is at most `long_side`.

        Rounded as by detectron2's ResizeShortestEdge.
        """
        h, w = shortest_edge(size, short_side, long_side)
        return cls(size, (h, w), (-(-h // DIVISOR) * DIVISOR, -(-w // DIVISOR) * DIVISOR))

    @property
    def cells(self) -> tuple[int, int]:
        """(h, w) of the stride-4 map, including its padding."""
        return self.padded[0] // STRIDE, self.padded[1] // STRIDE

    def image(self, frame: NDArray[np.uint8]) -> Tensor:
        """The segmenter's input float32 (3, padded) of a frame (H, W, 3) uint8 RGB: resized, normalised, zero-padded."""
        h, w = self.resized
        small = resize_frame(frame, self.resized).astype(np.float32)
        normalised = (small - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
        out = torch.zeros(3, *self.padded)
        out[:, :h, :w] = torch.from_numpy(normalised.transpose(2, 0, 1))
        return out

    def enlarge(self, logits: Tensor) -> Tensor:
        """Mask logits (K, h, w) resized to the input, without its padding, then to the frame (K, H, W), both bilinearly."""
        full = F.interpolate(logits[None], self.padded, mode="bilinear", align_corners=False)
        inside = full[:, :, : self.resized[0], : self.resized[1]]
        return F.interpolate(inside, self.size, mode="bilinear", align_corners=False)[0]

    def shares(self, masks: Tensor) -> Tensor:
        """The share of each cell that masks (K, H, W) cover: float32 (K, h, w) in [0, 1], zero in the padding."""
        rows, columns = (
            _overlap(cells, side, scaled).to(masks.device) for cells, side, scaled in zip(self.cells, self.size, self.resized)
        )
        return rows @ masks.float() @ columns.T


def _overlap(cells: int, pixels: int, scaled: int) -> Tensor:
    """The share of each cell's side that each pixel covers, (cells, pixels); all `pixels` together span `scaled` input pixels."""
    start = torch.arange(cells, dtype=torch.float64)[:, None] * STRIDE
    edges = torch.arange(pixels + 1, dtype=torch.float64) * (scaled / pixels)
    inside = torch.minimum(start + STRIDE, edges[1:]) - torch.maximum(start, edges[:-1])
    return (inside.clamp(min=0) / STRIDE).float()
