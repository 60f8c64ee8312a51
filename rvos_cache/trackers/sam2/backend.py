"""The seam between SAM 2 and what is done with it: rounds, filters and trackers know these nouns alone.

Letters: N tracks, T frames, C channels of an object pointer, K masks, H W pixels of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import Rle, RleMasks
from rvos_cache.trackers.sam2.settings import GridSettings
from rvos_cache.types import Video


@dataclass(frozen=True)
class Prompt:
    """A mask of one frame that may become a track.

    frame: t; mask: its compressed run-length bytes at the frame's size; area: its pixels; box: x0 y0 x1 y1 in pixels, what
    SAM 2 was asked with or else the mask's own.
    """

    frame: int
    mask: bytes
    area: int
    box: tuple[float, float, float, float]

    def rle(self, size: tuple[int, int]) -> Rle:
        """The mask as pycocotools takes it."""
        return {"size": list(size), "counts": self.mask}


def prompts_of(masks: RleMasks, frame: int, boxes: NDArray[np.floating] | None = None) -> list[Prompt]:
    """Masks (K, 1) of frame t as prompts; an empty one is none: SAM 2 would follow it as if something were there.

    boxes: (K, 4), x0 y0 x1 y1, that they were asked with; they are cut at the frame's edges.
    """
    h, w = masks.size
    areas = masks.area()[:, 0].tolist()
    if boxes is None:
        boxes = masks.boxes()[:, 0]
        boxes[:, 2:] += boxes[:, :2]
    corners = np.clip(boxes, 0, (w, h, w, h)).tolist()
    return [
        Prompt(frame, masks.bytes_at(k, 0), area, (box[0], box[1], box[2], box[3]))
        for k, (area, box) in enumerate(zip(areas, corners))
        if area
    ]


@dataclass(frozen=True)
class Propagated:
    """Tracks of prompts of one frame: tokens float32 (N, T, C), object pointers; scores float32 (N, T), logits that the
    object is visible; masks RleMasks (N, T) at the frames' size."""

    tokens: NDArray[np.float32]
    scores: NDArray[np.float32]
    masks: RleMasks


class Session(Protocol):
    """SAM 2 on one video."""

    def grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """Masks (K, 1) of a grid of points in frame t, best first, as SAM 2's mask generator gives them."""

    def box_masks(self, t: int, boxes: NDArray[np.float32], stability_offset: float) -> tuple[RleMasks, NDArray[np.float32]]:
        """One mask for each box (K, 4), x0 y0 x1 y1 in pixels of frame t: masks (K, 1), and their stability (K,)."""

    def propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        """Follow prompts of frame t through the whole video, forward and then backward."""


class Backend(Protocol):
    """A loaded SAM 2. channels: C."""

    channels: int

    def weight_hashes(self) -> dict[str, str]:
        """Name of the checkpoint -> digest of its weights."""

    def open(self, video: Video) -> AbstractContextManager[Session]:
        """A session; what it holds is let go when it ends."""
