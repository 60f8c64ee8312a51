"""Masks and presence of tracks from their mask logits, and features as float16.

Letters: N tracks, T frames, H W pixels, h w cells of the stride-4 map.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.mask_encoding import encode_masks
from rvos_cache.masks import RleMasks
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.types import Video

LARGEST = 6e4
"""Largest absolute value of a feature; float16 ends at 65504."""
TRACKS_PER_PASS = 32
"""Tracks whose logits are enlarged to the frame at a time; it limits memory."""


def to_float16(values: Tensor, video: Video, part: range, model: str) -> NDArray[np.float16]:
    """The values (t, ...) of the frames `part` as float16.

    model: whose values they are, for the error. Raises InputError naming a frame whose values do not fit.
    """
    out = values.cpu().numpy()
    # The comparison is false for NaN, too.
    bad = ~(np.abs(out).reshape(len(part), -1).max(1) < LARGEST)
    if bad.any():
        name = video.frame_names[part[int(bad.argmax())]]
        raise InputError(
            f"video {video.video_id}, frame {name}: {model}'s features are NaN or above {LARGEST:g} and do not fit in float16; "
            "check the frame and the checkpoint"
        )
    return out.astype(np.float16)


def mask_pixels(logits: Tensor, geometry: FrameGeometry) -> tuple[Tensor, list[float]]:
    """Masks bool (N, H, W) of one frame's logits (N, h, w), and the presence of each.

    A mask is where the enlarged logit is above 0; its presence is the mean probability σ(logit) of its pixels, 0 if it is empty.
    """
    enlarged = geometry.enlarge(logits)
    inside = enlarged > 0
    # Only for the pixels of masks: most of a frame is background.
    probabilities = torch.split(enlarged[inside].sigmoid(), inside.sum((1, 2)).tolist())
    return inside, [float(pixels.mean()) if len(pixels) else 0.0 for pixels in probabilities]


def decode_masks(
    logits: Iterable[Tensor], count: int, frames: int, geometry: FrameGeometry
) -> tuple[RleMasks, NDArray[np.float16]]:
    """Masks (N, T) and presence float16 (N, T) of `count` tracks, from the logits (N, h, w) of each of the `frames` frames."""
    rows: list[list[bytes]] = [[] for _ in range(count)]
    presence = np.zeros((count, frames), np.float16)
    for t, frame in enumerate(logits):
        for start in range(0, count, TRACKS_PER_PASS):
            inside, values = mask_pixels(frame[start : start + TRACKS_PER_PASS], geometry)
            presence[start : start + len(values), t] = values
            encoded = encode_masks(inside)
            for n, row in enumerate(rows[start : start + len(values)]):
                row.append(encoded.bytes_at(n, 0))
    return RleMasks.from_bytes(rows, frames, geometry.size), presence


def largest(masks: RleMasks) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The frame (N,) in which each track of masks (N, T) is largest, and its box there, float32 (N, 4) x0 y0 x1 y1."""
    area: NDArray[Any] = masks.area()
    frames = area.argmax(1)
    corners = masks.boxes()[np.arange(len(area)), frames].reshape(-1, 4).astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    return frames.astype(np.int32), corners
