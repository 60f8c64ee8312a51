"""The interface between SAM 2 and its users: rounds, filters and trackers depend on these types alone.

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
from rvos_cache.trackers.sam2.settings import BoxSettings, GridSettings
from rvos_cache.types import Video


@dataclass(frozen=True)
class Prompt:
    """A mask of one frame, from which SAM 2 tracks an object.

    frame: t; mask: its compressed run-length bytes at the frame's size; area: its pixels; box: x0 y0 x1 y1 in pixels, the box
    that prompted the mask, or else the box around it.
    """

    frame: int
    mask: bytes
    area: int
    box: tuple[float, float, float, float]

    def rle(self, size: tuple[int, int]) -> Rle:
        """The mask in the form that pycocotools takes."""
        return {"size": list(size), "counts": self.mask}


def make_prompts(
    masks: RleMasks, frame: int, boxes: NDArray[np.floating] | None = None, keep_empty: bool = False
) -> list[Prompt]:
    """Masks (K, 1) of frame t as prompts.

    boxes: (K, 4), x0 y0 x1 y1, the boxes that prompted them; stored clipped to the frame. keep_empty: keep masks without pixels,
    which SAM 2 tracks as objects that are hidden in frame t.
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
        if area or keep_empty
    ]


@dataclass(frozen=True)
class Propagated:
    """Tracks of prompts of one frame: tokens float32 (N, T, C), object pointers; scores float32 (N, T), logits that the
    object is visible; masks RleMasks (N, T) at the frames' size."""

    tokens: NDArray[np.float32]
    scores: NDArray[np.float32]
    masks: RleMasks


def concatenate(parts: Sequence[Propagated]) -> Propagated:
    """The tracks of several, at least one, in order."""
    if len(parts) == 1:
        return parts[0]
    masks = RleMasks.concatenate([part.masks for part in parts])
    return Propagated(np.concatenate([p.tokens for p in parts]), np.concatenate([p.scores for p in parts]), masks)


class Session(Protocol):
    """SAM 2 on one video."""

    def grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """Masks (K, 1) of a grid of points in frame t, highest predicted IoU first, as in SAM 2's mask generator."""

    def whole_grid_masks(self, t: int, settings: GridSettings) -> RleMasks:
        """The masks of `grid_masks`, largest first, without parts of larger ones (`rounds.whole_masks`)."""

    def box_masks(self, t: int, boxes: NDArray[np.float32], settings: BoxSettings) -> tuple[RleMasks, NDArray[np.float32]]:
        """One mask for each box (K, 4), x0 y0 x1 y1 in pixels of frame t: masks (K, 1) and their stability (K,), NaN where all
        logits are below the offset. Computed in float32, also on a GPU."""

    def propagate(self, t: int, prompts: Sequence[Prompt]) -> Propagated:
        """Track prompts of frame t through the whole video, forward and then backward."""


class Backend(Protocol):
    """A loaded SAM 2. channels: C."""

    channels: int

    def weight_hashes(self) -> dict[str, str]:
        """Name of the checkpoint -> digest of its weights."""

    def open(self, video: Video) -> AbstractContextManager[Session]:
        """A session; its memory and files are released when it ends."""
