"""Video queries drawn as tracks: their masks, presence and tokens, frame by frame.

Letters: N tracks, T frames, H W pixels, h w cells of the stride-4 map, C channels of the mask features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.vita.geometry import FrameGeometry
from rvos_cache.trackers.vita.spool import Spool


@dataclass(frozen=True, eq=False)
class DrawnQueries:
    """masks: (N, T); presence: float16 (N, T); tokens: float16 (N, T, C)."""

    masks: RleMasks
    presence: NDArray[np.float16]
    tokens: NDArray[np.float16]

    def select(self, tracks: NDArray[np.intp]) -> DrawnQueries:
        """The tracks of these indices."""
        return DrawnQueries(self.masks.select(tracks), self.presence[tracks], self.tokens[tracks])


@torch.inference_mode()
def draw_queries(mask_embed: Tensor, f_mask: Spool, geometry: FrameGeometry) -> DrawnQueries:
    """The masks of mask embeddings (N, C), where the logit is above 0, from mask features f_mask (T, h, w, C).

    presence: the mean probability σ(logit) of the mask's pixels, 0 where it has none; tokens: the mean of f_mask under the mask,
    each cell weighted by how much of it lies under the mask, zeros where it has no pixel.
    """
    count, frames = len(mask_embed), len(f_mask)
    rows: list[list[bytes]] = [[] for _ in range(count)]
    presence = np.zeros((count, frames), np.float16)
    tokens = np.zeros((count, frames, mask_embed.shape[1]), np.float16)
    for t in range(frames):
        features = torch.from_numpy(f_mask[t]).to(mask_embed.device).float()
        logits = geometry.enlarge(torch.einsum("nc,hwc->nhw", mask_embed, features))
        inside = logits > 0
        encoded = RleMasks.from_dense(_numpy(inside)[:, None])
        for n, row in enumerate(rows):
            row.append(encoded.bytes_at(n, 0))
        # Of the masks' pixels alone: most of a frame is background.
        shown = torch.split(logits[inside].sigmoid(), inside.sum((1, 2)).tolist())
        presence[:, t] = [float(pixels.mean()) if len(pixels) else 0 for pixels in shown]
        weights = geometry.shares(inside).flatten(1)
        # A pixel's weight is spread over the cells it covers, so only a mask without a pixel has none.
        tokens[:, t] = _numpy(weights @ features.flatten(0, 1) / weights.sum(1, keepdim=True).clamp(min=1e-12))
    return DrawnQueries(RleMasks.from_bytes(rows, frames, geometry.size), presence, tokens)


def _numpy(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()
