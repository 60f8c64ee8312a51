"""Features of a frozen CLIP pooled under the masks of tracks.

Letters: T frames, H W pixels of a frame, N tracks, h w cells of a map, P channels of all maps together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.clip.image import ClipImage, head_digest, load_image
from rvos_cache.clip.towers import load_text_tower, tower_digest
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.settings import Settings, square_or_short_side
from rvos_cache.types import FeatureSpec, Video

POOL, FRAME, BOX = "clip_pool", "clip_frame", "clip_box"
"""Names of the features: of each track in each frame, of the whole frame, and the box of each track in each frame."""
NAMES = (POOL, FRAME, BOX)
CLIP = "clip"
"""The entry of a card's `extra` that `ClipPooling.record` gives."""
LARGEST = 6e4
"""Largest absolute value of a feature; float16 ends at 65504."""
PIXELS = 1 << 25
"""Pixels of masks that are decoded at a time."""


class PoolSettings(Settings):
    """How frames are shown to CLIP."""

    checkpoint: str
    """Folder that `rvos-cache convert-clip` wrote, or a hub name or folder of transformers' CLIPModel (ViT)."""
    short_side: int = Field(default=448, ge=0)
    """Pixels of the input's shorter side, at the same aspect ratio; 0: the frame's own. Source: SSA's released configuration for
    MeViS."""
    long_side: int = Field(default=1333, ge=1)
    """Largest number of pixels of the longer side of a resized frame. Source: SSA's released configuration."""
    square: int = Field(default=0, ge=0)
    """Pixels of both sides of the input, at any aspect ratio; 0: off. Give it or short_side. A CLIPModel was trained on the square of
    its config (224 or 336)."""
    frames_per_pass: int = Field(default=8, ge=1)
    """Frames in one pass of the tower; fewer take less memory and give the same features."""

    @model_validator(mode="before")
    @classmethod
    def _square_or_short_side(cls, values: Any) -> Any:
        return square_or_short_side(values)


class ClipPooling:
    """A frozen CLIP that pools its maps of a video under masks.

    The mean of a map's cells is weighted by the share of each cell that the mask covers. These shares are exact areas, so a mask
    of a few pixels takes the cell in which they lie at every stride; an absent mask gives zeros.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self.image: ClipImage = load_image(settings.checkpoint)
        self.channels = sum(self.image.widths)
        self.feature_specs = (
            FeatureSpec(POOL, ("T", "N", self.channels), by_frame=True),
            FeatureSpec(FRAME, ("T", self.channels), by_frame=True),
            FeatureSpec(BOX, ("T", "N", 4), "float32", by_frame=True),
        )

    def record(self) -> dict[str, Any]:
        """What a card says of the pooling, under `extra["clip"]`: the settings that determine the features, the widths of the maps,
        and the digests of the checkpoint's three parts: the image tower, the text tower and the image head (None: it has none).
        """
        checkpoint = self.settings.checkpoint
        (image,) = self.image.weights.values()
        (text,) = tower_digest(load_text_tower(checkpoint), checkpoint).values()
        return {
            **self.settings.model_dump(mode="json", exclude={"frames_per_pass"}),
            "widths": list(self.image.widths),
            "image": image,
            "text": text,
            "head": head_digest(checkpoint),
        }

    def geometry(self, size: tuple[int, int]) -> FrameGeometry:
        """Of frames of `size` (H, W)."""
        settings = self.settings
        if settings.square:
            return self.image.square(size, settings.square)
        return self.image.geometry(size, settings.short_side, settings.long_side)

    def features(self, video: Video, masks: RleMasks) -> dict[str, Any]:
        """The features of masks (N, T): clip_pool, T arrays float16 (N, P), and clip_frame, T arrays float16 (P,), computed while
        they are read; and clip_box, see `box_shares`.

        The first two come from one pass over the frames, so clip_pool must be read to its end before clip_frame. Raises InputError,
        while they are read, for a feature that does not fit in float16.
        """
        frame_vectors: list[NDArray[np.float16]] = []

        def pooled() -> Iterator[NDArray[np.float16]]:
            for values in self._pass(video, masks):
                # The first row is the mask of the whole frame. A view would keep the other rows in memory.
                frame_vectors.append(values[0].copy())
                yield values[1:]

        def frames() -> Iterator[NDArray[np.float16]]:
            if len(frame_vectors) != len(video):
                raise ValueError(f"{FRAME} is read before the end of {POOL}")
            yield from frame_vectors

        return {POOL: pooled(), FRAME: frames(), BOX: box_shares(masks)}

    def _pass(self, video: Video, masks: RleMasks) -> Iterator[NDArray[np.float16]]:
        """For each frame float16 (1 + N, P): the means of the whole frame and of each track."""
        geometry, per_pass = self.geometry(video.size), self.settings.frames_per_pass
        for start in range(0, len(video), per_pass):
            part = range(start, min(start + per_pass, len(video)))
            maps = self.image.maps(torch.stack([geometry.image(video.read(t)) for t in part]))
            for i, t in enumerate(part):
                own = [m[i] for m in maps]
                parts = [pool(own, self.image.strides, geometry, dense) for dense in _masks_of_frame(masks, t)]
                yield _to_float16(torch.cat(parts), video, t)


def box_shares(masks: RleMasks) -> NDArray[np.float32]:
    """Boxes (T, N, 4) of masks (N, T): x0, y0, x1, y1 in shares of the frame, x1 and y1 exclusive; zeros for an empty mask."""
    boxes = masks.boxes().astype(np.float32)
    boxes[..., 2:] += boxes[..., :2]
    height, width = masks.size
    return np.ascontiguousarray((boxes / np.array([width, height, width, height], np.float32)).transpose(1, 0, 2))


def pool(maps: Sequence[Tensor], strides: Sequence[int], geometry: FrameGeometry, masks: Tensor) -> Tensor:
    """Means (N, P) of maps (C_i, h_i, w_i) of one frame under masks bool (N, H, W), the maps' channels one after the other.

    strides: of each map, finest first, each a multiple of the first. A mask without a pixel gives zeros.
    """
    device = maps[0].device
    finest = geometry.shares(masks.to(device), strides[0])
    means = []
    for cells, stride in zip(maps, strides):
        factor = stride // strides[0]
        # The cells of a coarser map are made of whole cells of the finest one, whose number the padding makes a multiple.
        shares = (F.avg_pool2d(finest[None], factor)[0] if factor > 1 else finest).flatten(1)
        total = shares.sum(1, keepdim=True)
        means.append(shares @ cells.flatten(1).T / torch.where(total > 0, total, 1))
    return torch.cat(means, 1)


def _masks_of_frame(masks: RleMasks, t: int) -> Iterator[Tensor]:
    """The mask of the whole frame and the N masks of frame t, bool (n, H, W), a bounded number of pixels at a time."""
    yield torch.ones(1, *masks.size, dtype=torch.bool)
    per_part = max(1, PIXELS // (masks.size[0] * masks.size[1]))
    for start in range(0, masks.shape[0], per_part):
        part = range(start, min(start + per_part, masks.shape[0]))
        yield torch.from_numpy(np.stack([masks.decode(k, t) for k in part]))


def _to_float16(values: Tensor, video: Video, t: int) -> NDArray[np.float16]:
    # The comparison is false for NaN, too.
    if not bool((values.abs() < LARGEST).all()):
        raise InputError(
            f"video {video.video_id}, frame {video.frame_names[t]}: CLIP's features are NaN or above {LARGEST:g} and do not fit in "
            "float16; check the frame and the checkpoint"
        )
    return values.cpu().numpy().astype(np.float16)
