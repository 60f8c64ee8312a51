"""Hungarian matching of a selector's queries and the objects of an expression: one-to-one.

Hungarian matching as in DETR (Carion et al., ECCV 2020, section 3.1). Letters: Q queries, N tracks, A objects, T frames, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.types import Overlap


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and their objects, int64 (min(Q, A),) each, of the least total cost (Q, A); the other ones are left alone."""
    rows, columns = linear_sum_assignment(_finite(cost).cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


def assign_all(costs: Sequence[Tensor]) -> list[list[tuple[list[int], list[int]]]]:
    """For each tensor of costs (layers, Q, A), of which each may have another A, and each of its layers what `assign` gives.

    All of them are read in one copy, so that the host waits once for a GPU.
    """
    if not costs:
        return []
    values = np.array(torch.cat([_finite(cost).flatten() for cost in costs]).tolist(), np.float32)
    parts = np.split(values, np.cumsum([cost.numel() for cost in costs])[:-1])
    chosen = [[linear_sum_assignment(layer) for layer in part.reshape(cost.shape)] for part, cost in zip(parts, costs)]
    return [[(rows.tolist(), columns.tolist()) for rows, columns in layers] for layers in chosen]


def _finite(cost: Tensor) -> Tensor:
    # A NaN must reach the loss, where the training loop names the video, and not stop the matching without a name.
    return torch.nan_to_num(cost.detach().float(), nan=1e6, posinf=1e6, neginf=-1e6)


def bce_costs(logits: Tensor, truth: Tensor) -> Tensor:
    """(Q, A): the binary cross-entropy of mask logits (Q, P) with objects (A, P) in [0, 1], its mean over the points.

    BCE(x, y) = softplus(x) - x y.
    """
    return (F.softplus(logits).sum(1)[:, None] - logits @ truth.T) / logits.shape[1]


def dice_costs(logits: Tensor, truth: Tensor) -> Tensor:
    """(Q, A): 1 - (2 Σ p y + 1) / (Σ p + Σ y + 1), p = σ(logits); shapes as in `bce_costs` (Milletari et al., 3DV 2016)."""
    p = logits.sigmoid()
    return 1 - (2 * (p @ truth.T) + 1) / (p.sum(1)[:, None] + truth.sum(1)[None] + 1)


def counted_costs(overlap: Overlap) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """1 - Dice and 1 - IoU, both (N, A), of binary tracks and objects: pixels are summed over the annotated frames.

    Dice has the 1 of `dice_costs` above and below; the IoU of two empty masks is 0.
    """
    annotated = overlap.annotated
    inter = overlap.inter[:, :, annotated].sum(-1, dtype=np.int64)
    both = overlap.area[:, None, annotated].sum(-1, dtype=np.int64) + overlap.gt_area[None, :, annotated].sum(-1, dtype=np.int64)
    dice = 1 - (2 * inter + 1) / (both + 1)
    iou = inter / np.maximum(both - inter, 1)
    return dice.astype(np.float32), (1 - iou).astype(np.float32)


class SoftSums(NamedTuple):
    """Sums over the cells of each frame, as `rvos_cache.soft_overlap` has them, of mask logits x and of objects' shares y."""

    both: Tensor
    """(..., N, A, T, 2): of σ(x) y and of x y."""
    track: Tensor
    """(..., N, T, 2): of σ(x) and of softplus(x)."""
    truth: Tensor
    """(..., A, T): of y."""


def soft_costs(part: SoftSums, cells: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    """BCE and Dice costs and the soft IoU, float32 (..., N, A) each, of masks over all cells of the T frames together.

    Exactly what `bce_costs` and `dice_costs` give for the cells as points; the IoU is Σ p y / (Σ p + Σ y - Σ p y), p = σ(x). cells:
    number of each frame's cells, (..., T), or of every frame's; frames of 0 cells are not counted, without any other BCE and IoU
    are 0. Leading dimensions are broadcast.
    """
    count = part.truth.new_full(part.truth.shape[-1:], cells) if isinstance(cells, int) else cells
    # In float64: a difference of sums follows, each as large as the number of cells times a logit.
    weight = (count > 0).double()
    both = torch.einsum("...natc,...t->...nac", part.both.double(), weight)
    track = torch.einsum("...ntc,...t->...nc", part.track.double(), weight)[..., None, :]
    truth = torch.einsum("...at,...t->...a", part.truth.double(), weight)[..., None, :]
    total = count.sum(-1).clamp(min=1)[..., None, None]
    bce = (track[..., 1] - both[..., 1]) / total
    sizes = track[..., 0] + truth
    dice = 1 - (2 * both[..., 0] + 1) / (sizes + 1)
    iou = both[..., 0] / (sizes - both[..., 0]).clamp(min=1e-12)
    return bce.float(), dice.float(), iou.float()
