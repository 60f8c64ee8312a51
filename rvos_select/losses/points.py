"""Mask losses at sampled points instead of all pixels (Kirillov et al., "PointRend", CVPR 2020, section 3.1; Cheng et al.,
"Mask2Former", CVPR 2022, section 3.3).

A point is x, y in [0, 1]² of a map, whatever the map's cells, so that a mask's logits and its truth may differ in size.
Letters: K masks, P points, h w cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

OVERSAMPLE = 3
"""Candidate points for each one that is selected for its uncertainty."""
UNCERTAIN = 0.75
"""Share of the points that are selected for their uncertainty; the others are random."""


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (K, C, P) of maps (K, C, h, w) at points (K, P, 2); cells beyond the border are 0.

    It is linear in the maps, so it may be taken before or after a dot product over C.
    """
    return sample_grid(maps, grid_of(points))


def grid_of(points: Tensor) -> Tensor:
    """Points in [0, 1]² as `sample_grid` has them, for several maps: in [-1, 1]², the same shape."""
    return 2 * points - 1


def sample_grid(maps: Tensor, grid: Tensor) -> Tensor:
    """As `sample`, at the points of `grid_of`."""
    return F.grid_sample(maps, grid[:, :, None], align_corners=False)[..., 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int) -> Tensor:
    """(K, count, 2): most where the logits (K, h, w) are nearest to 0, among `OVERSAMPLE` times as many, the rest anywhere."""
    masks, uncertain = len(logits), int(UNCERTAIN * count)
    candidates = torch.rand(masks, OVERSAMPLE * count, 2, device=logits.device)
    nearest = sample(logits[:, None], candidates)[:, 0].abs().topk(uncertain, dim=1, largest=False).indices
    chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, torch.rand(masks, count - uncertain, 2, device=logits.device)], 1)


def bce_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of K masks at their points, (K, P) both: the sum over the masks of the mean over the points."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1).sum()


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - (2 Σ p y + 1) / (Σ p + Σ y + 1) of K masks at their points, (K, P) both, p = σ(logits): the sum over the masks."""
    p = logits.sigmoid()
    return (1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)).sum()
