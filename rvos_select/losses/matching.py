"""Hungarian matching of a selector's queries and the objects of an expression: one-to-one.

Hungarian matching as in DETR (Carion et al., ECCV 2020, section 3.1). Letters: Q queries, A objects, P points.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.types import Overlap


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and their objects, int64 (min(Q, A),) each, of the least total cost (Q, A); the other ones are left alone."""
    # A NaN must reach the loss, where the training loop names the video, and not stop here without a name.
    finite = torch.nan_to_num(cost.detach().float().cpu(), nan=1e6, posinf=1e6, neginf=-1e6)
    rows, columns = linear_sum_assignment(finite.numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


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
