"""Masks, presence and tokens of video queries, frame by frame.

Letters: N tracks, T frames, H W pixels, h w cells of the stride-4 map, C channels of the mask features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.mask_encoding import encode_masks
from rvos_cache.masks import RleMasks
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.soft_overlap import soft_overlap, truth_shares
from rvos_cache.trackers.mask2former.masks import mask_pixels
from rvos_cache.trackers.mask2former.spool import Spool
from rvos_cache.types import GroundTruth, Measure


@dataclass(frozen=True, eq=False)
class QueryTracks:
    """Video queries as tracks. masks: (N, T); presence: float16 (N, T); tokens: float16 (N, T, C)."""

    masks: RleMasks
    presence: NDArray[np.float16]
    tokens: NDArray[np.float16]

    def select(self, tracks: NDArray[np.intp]) -> QueryTracks:
        """The tracks with these indices."""
        return QueryTracks(self.masks.select(tracks), self.presence[tracks], self.tokens[tracks])


@torch.inference_mode()
def decode_queries(mask_embed: Tensor, f_mask: Spool, geometry: FrameGeometry) -> QueryTracks:
    """The tracks of mask embeddings (N, C) in mask features f_mask (T, h, w, C).

    masks: where the mask logit is above 0; presence: the mean probability σ(logit) of the mask's pixels, 0 if it is empty;
    tokens: the mean of f_mask, each cell weighted by the share of it that the mask covers, zeros if it is empty.
    """
    count, frames = len(mask_embed), len(f_mask)
    rows: list[list[bytes]] = [[] for _ in range(count)]
    presence = np.zeros((count, frames), np.float16)
    tokens = np.zeros((count, frames, mask_embed.shape[1]), np.float16)
    for t in range(frames):
        features = torch.from_numpy(f_mask[t]).to(mask_embed.device).float()
        inside, presence[:, t] = mask_pixels(torch.einsum("nc,hwc->nhw", mask_embed, features), geometry)
        encoded = encode_masks(inside)
        for n, row in enumerate(rows):
            row.append(encoded.bytes_at(n, 0))
        weights = geometry.shares(inside).flatten(1)
        # Every pixel has a weight in some cell, so the sum is 0 only for an empty mask.
        tokens[:, t] = _numpy(weights @ features.flatten(0, 1) / weights.sum(1, keepdim=True).clamp(min=1e-12))
    return QueryTracks(RleMasks.from_bytes(rows, frames, geometry.size), presence, tokens)


def pooled_features(f_mask: Spool, geometry: FrameGeometry, count: int) -> NDArray[np.float16]:
    """Mask features f_mask (T, h, w, C) averaged over count x count areas of each frame, float16 (T, count, count, C)."""
    frames = (geometry.pool(torch.from_numpy(f_mask[t]), count) for t in range(len(f_mask)))
    return np.stack([frame.numpy().astype(np.float16) for frame in frames])


def soft_measure(mask_embed: Tensor, f_mask: Spool, geometry: FrameGeometry) -> Measure:
    """What measures the soft masks of mask embeddings (N, C) in mask features f_mask (T, h, w, C), over the cells of the frame."""
    h, w = geometry.inside()

    def logits(t: int) -> Tensor:
        features = torch.from_numpy(f_mask[t][:h, :w]).to(mask_embed.device).float()
        return torch.einsum("nc,hwc->nhw", mask_embed, features)

    def measure(truth: GroundTruth) -> Mapping[str, NDArray[Any]]:
        shares = (share[:, :h, :w] for share in truth_shares(truth, geometry))
        return soft_overlap((logits(t) for t in range(len(f_mask))), shares, truth.annotated)

    return measure


def _numpy(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()
