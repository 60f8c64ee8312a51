"""Masks that a selector draws itself, from chunks of pixels to runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rvos_cache.masks import RleMasks
from rvos_select.data.batch import Batch


def queries_to_draw(scores: Tensor, draw_threshold: float) -> Tensor:
    """Which queries are drawn, bool (B, Q): those with scores (B, Q) above `draw_threshold`, and each expression's best."""
    best = torch.zeros_like(scores, dtype=torch.bool)
    if scores.shape[1]:
        best.scatter_(1, scores.argmax(1, keepdim=True), True)
    return best | (scores > draw_threshold)


def draw_masks(model: Any, batch: Batch, wanted: Tensor) -> RleMasks:
    """The masks of the K queries `wanted` bool (B, Q), row by row, as RleMasks (K, T). batch: expressions of one video.

    The pixels of a few frames are in memory at a time.
    """
    rows: list[list[bytes]] = [[] for _ in range(int(wanted.sum()))]
    frames = batch.frame_mask.shape[1]
    if not rows:
        return RleMasks.empty(0, frames, batch.sizes[0])
    for pixels in model.draw(batch, wanted):
        part = RleMasks.from_dense(pixels.cpu().numpy())
        for k, row in enumerate(rows):
            row += [part.bytes_at(k, t) for t in range(part.shape[1])]
    return RleMasks.from_bytes(rows, frames, batch.sizes[0])
