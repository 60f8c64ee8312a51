"""The geometry of frames, of a frozen model's input and of its maps.

Letters: H W pixels of the frame, h w cells of a map, K masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.media.resize import resize_frame, shortest_edge

STRIDE = 4
"""Input pixels along the side of a cell of the finest map."""
DIVISOR = 32
"""By default the input is padded to multiples of this many pixels, the side of a cell of the coarsest map."""

Colour = tuple[float, float, float]
"""A value of red, green and blue from 0 to 255."""


@dataclass(frozen=True)
class FrameGeometry:
    """Where frames of one size lie in a model's input and in its maps, and how their pixels are normalised.

    size: (H, W) of the frame; resized: of the frame in the input; padded: of the input, whose right and bottom are padding;
    mean, deviation: subtracted from the pixels, then divided by; resample: Pillow's filter that resizes the frame.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]
    mean: Colour
    deviation: Colour
    resample: Image.Resampling = Image.Resampling.BILINEAR

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        short_side: int,
        long_side: int,
        *,
        mean: Colour,
        deviation: Colour,
        divisor: int = DIVISOR,
        resample: Image.Resampling = Image.Resampling.BILINEAR,
    ) -> FrameGeometry:
        """Of frames whose aspect ratio is kept, zero-padded to multiples of `divisor` pixels. Sides as in `resize.shortest_edge`."""
        resized = shortest_edge(size, short_side, long_side)
        return cls.stretched(size, resized, mean=mean, deviation=deviation, divisor=divisor, resample=resample)

    @classmethod
    def stretched(
        cls,
        size: tuple[int, int],
        resized: tuple[int, int],
        *,
        mean: Colour,
        deviation: Colour,
        divisor: int = DIVISOR,
        resample: Image.Resampling = Image.Resampling.BILINEAR,
    ) -> FrameGeometry:
        """Of frames resized to exactly `resized` (a square, or multiples of a patch), zero-padded to multiples of `divisor`."""
        h, w = (-(-side // divisor) * divisor for side in resized)
        return cls(size, resized, (h, w), mean, deviation, resample)

    def cells(self, stride: int = STRIDE) -> tuple[int, int]:
        """(h, w) of the map of `stride` input pixels per cell, including its padding."""
        return self.padded[0] // stride, self.padded[1] // stride

    def inside(self, stride: int = STRIDE) -> tuple[int, int]:
        """(h, w) of that part of the map, its first rows and columns, in which the frame lies: all but the padding."""
        return -(-self.resized[0] // stride), -(-self.resized[1] // stride)

    def image(self, frame: NDArray[np.uint8]) -> Tensor:
        """The model's input float32 (3, padded) of a frame (H, W, 3) uint8 RGB: resized, normalised, zero-padded."""
        h, w = self.resized
        small = resize_frame(frame, self.resized, self.resample).astype(np.float32)
        normalised = (small - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32)
        out = torch.zeros(3, *self.padded)
        out[:, :h, :w] = torch.from_numpy(normalised.transpose(2, 0, 1))
        return out

    def enlarge(self, logits: Tensor) -> Tensor:
        """Mask logits (K, h, w) resized to the input, without its padding, then to the frame (K, H, W), both bilinearly."""
        full = F.interpolate(logits[None], self.padded, mode="bilinear", align_corners=False)
        inside = full[:, :, : self.resized[0], : self.resized[1]]
        return F.interpolate(inside, self.size, mode="bilinear", align_corners=False)[0]

    def shares(self, masks: Tensor, stride: int = STRIDE) -> Tensor:
        """The share of each cell that masks (K, H, W) cover: float32 (K, h, w) in [0, 1], zero in the padding.

        Areas are exact, so the share of a mask of one pixel is small but not zero, at every stride.
        """
        rows, columns = (
            _overlap(cells, side, scaled, stride).to(masks.device)
            for cells, side, scaled in zip(self.cells(stride), self.size, self.resized)
        )
        return rows @ masks.float() @ columns.T

    def pool(self, maps: Tensor, count: int, stride: int = STRIDE) -> Tensor:
        """Maps (..., h, w, C) averaged to count x count areas of the frame, without the padding: float32 (..., count, count, C).

        A cell that lies in two areas counts in each by the share of it that lies there.
        """
        rows, columns = (
            (share / share.sum(0)).to(maps.device)
            for share in (_overlap(cells, count, scaled, stride) for cells, scaled in zip(self.cells(stride), self.resized))
        )
        # One side after the other: together they are ten times as many products.
        return torch.einsum("xj,...ixc->...ijc", columns, torch.einsum("yi,...yxc->...ixc", rows, maps.float()))


def _overlap(cells: int, pixels: int, scaled: int, stride: int) -> Tensor:
    """The share of each cell's side that each pixel covers, (cells, pixels); all `pixels` together span `scaled` input pixels."""
    start = torch.arange(cells, dtype=torch.float64)[:, None] * stride
    edges = torch.arange(pixels + 1, dtype=torch.float64) * (scaled / pixels)
    inside = torch.minimum(start + stride, edges[1:]) - torch.maximum(start, edges[:-1])
    return (inside.clamp(min=0) / stride).float()
