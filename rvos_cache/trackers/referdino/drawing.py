"""Masks of queries: by ReferDINO's mask decoder, by SAM 2 from boxes, or filled boxes.

Letters: E expressions, T frames, Q queries, H W pixels of the video, C channels, L text tokens, K frames of a pass, S cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.mask_encoding import encode_masks
from rvos_cache.masks import RleMasks
from rvos_cache.settings import build
from rvos_cache.trackers.base import ShareDone
from rvos_cache.trackers.referdino.frame_maps import FrameMaps, Resizing
from rvos_cache.trackers.referdino.head import ReferDinoHead
from rvos_cache.trackers.referdino.masks import image_masks, upsampled
from rvos_cache.trackers.referdino.pyramid import MASK_LEVELS, split_levels
from rvos_cache.trackers.sam2.backend import Backend
from rvos_cache.trackers.sam2.settings import BoxSettings
from rvos_cache.trackers.spool import ArraySpool
from rvos_cache.types import Video

Rows = list[list[bytes]]
"""Compressed masks of Q queries in T frames: first the query, then the frame."""


def pixel_boxes(boxes: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (..., 4), x0 y0 x1 y1 in pixels, clipped to the frame of `size` (H, W), of cxcywh in [0, 1]."""
    h, w = size
    centre, half = boxes[..., :2].astype(np.float64), boxes[..., 2:].astype(np.float64) / 2
    corners = np.concatenate([centre - half, centre + half], -1) * (w, h, w, h)
    return np.clip(corners, 0, (w, h, w, h)).astype(np.float32)


def filled_boxes(boxes: NDArray[np.float32], size: tuple[int, int]) -> Rows:
    """The pixels whose centres lie in the boxes (Q, T, 4), x0 y0 x1 y1 in pixels of frames of `size` (H, W)."""
    rows, columns = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    out: Rows = []
    for track in boxes:
        x0, y0, x1, y1 = track.T[..., None]
        inside = ((y0 <= rows) & (rows < y1))[:, :, None] & ((x0 <= columns) & (columns < x1))[:, None]
        masks = RleMasks.from_dense(inside[None])
        out.append([masks.bytes_at(0, t) for t in range(len(track))])
    return out


def prompted_masks(backend: Backend, video: Video, boxes: Sequence[NDArray[np.float32]], progress: ShareDone) -> list[Rows]:
    """SAM 2's mask of each box, of E arrays of boxes (Q, T, 4), x0 y0 x1 y1 in pixels. Each frame is encoded once for all boxes."""
    settings = build(BoxSettings, {}, "SAM 2")
    out: list[Rows] = [[[] for _ in of_text] for of_text in boxes]
    with backend.open(video) as session:
        for t in range(len(video)):
            progress(t / len(video))
            masks, _ = session.box_masks(t, np.concatenate([of_text[:, t] for of_text in boxes]), settings)
            for place, row in enumerate(row for of_text in out for row in of_text):
                row.append(masks.bytes_at(place, 0))
    return out


def decoded_masks(
    head: ReferDinoHead,
    maps: FrameMaps,
    memory: ArraySpool,
    queries: Tensor,
    reference: Tensor,
    text: Tensor,
    size: tuple[int, int],
    resizing: Resizing = "video",
) -> Rows:
    """The masks of one text by the mask decoder, pass by pass; with padded frames as `image_masks` cuts them.

    queries: (T, Q, C), enhanced; reference: (T, Q, 4); text: (T, L, C); memory: frame -> its encoded levels (S, C).
    """
    out: Rows = [[] for _ in range(queries.shape[1])]
    device = maps.upstream.device
    for part in maps.parts:
        frames = slice(part.start, part.stop)
        encoded = torch.from_numpy(np.stack([memory[t] for t in part])).to(device)
        stage1 = maps.stage1(part)
        features = head.features([stage1, *split_levels(encoded, maps.shapes[:MASK_LEVELS])])
        words = text[frames].to(device)
        real, text_mask = (
            maps.real.to(device).expand(len(stage1), -1, -1),
            torch.ones(words.shape[:2], dtype=torch.bool, device=device),
        )
        logits = head.mask_logits(queries[frames].to(device), reference[frames].to(device), features, real, words, text_mask)
        for one in logits:
            # One frame of pixels at a time.
            pixels = upsampled(one[None], size)[0] if resizing == "video" else image_masks(one, maps.padded, maps.resized, size)
            masks = encode_masks(pixels)
            for q, row in enumerate(out):
                row.append(masks.bytes_at(q, 0))
    return out
