"""Losses over candidate tracks: mean over an expression's candidates, then over the expressions.

An expression without candidates has loss 0 and counts; a row without words is padding of B and does not count. So the
loss of a batch is the mean of the losses of its expressions one by one. Shapes: logits, targets, track_mask (B, N).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = math.exp(0.07)
"""SOLA's released code holds exp(0.07) as a parameter that its optimiser never gets: a constant."""


def expression_mean(values: Tensor, track_mask: Tensor, counted: Tensor) -> Tensor:
    """values (B, N) -> scalar: mean over the candidates, then over the expressions `counted` (B,) bool."""
    inside = values.masked_fill(~track_mask, 0.0).sum(1) / track_mask.sum(1).clamp(min=1)
    return inside.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


def bce(logits: Tensor, target: Tensor, track_mask: Tensor, counted: Tensor, positive_weight: float) -> Tensor:
    """Binary cross-entropy of logits (B, N); positives weigh `positive_weight` (SOLA, Eq. 6: 1; its code: 1.5)."""
    # A fill, not a copy of a number of the host, which a GPU waits for.
    weight = torch.full((), positive_weight, device=logits.device, dtype=logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weight)
    return expression_mean(each, track_mask, counted)


def alignment_code(
    objects: Tensor,
    anchor: Tensor,
    negatives: Tensor,
    target: Tensor,
    track_mask: Tensor,
    counted: Tensor,
    positive_weight: float = 1.5,
) -> Tensor:
    """SOLA's alignment loss as its released code computes it.

    objects (B, N, D) the aggregated track vectors, anchor (B, D) the mean word, negatives (Q, D) learned. With
    p = objects·anchor and n_j = objects·negative_j, both times exp(0.07): positive_weight × BCE(p, y) plus
    BCE(n, z) averaged over tracks and negatives, where z is 1 − y at each track's largest n_j and 0 elsewhere.
    """
    p = (objects * anchor[:, None]).sum(-1) * TEMPERATURE
    n = (objects @ negatives.T) * TEMPERATURE
    nearest = torch.zeros_like(n).scatter_(-1, n.argmax(-1, keepdim=True), 1.0)
    z = nearest * (1 - target)[..., None]
    positive = F.binary_cross_entropy_with_logits(p, target, reduction="none")
    negative = F.binary_cross_entropy_with_logits(n, z, reduction="none").mean(-1)
    return expression_mean(positive_weight * positive + negative, track_mask, counted)


def alignment_paper(
    objects: Tensor, anchor: Tensor, negatives: Tensor, target: Tensor, track_mask: Tensor, counted: Tensor
) -> Tensor:
    """SOLA's alignment loss after Eqs. 7 and 8, with distances d = 1 − cos; shapes as in `alignment_code`.

    A positive: d(anchor) − Σ_j d(negative_j). A negative, k its closest negative: d(negative_k) − d(anchor)
    − Σ_{j≠k} d(negative_j). Eq. 7 prints a minus before the mean, which would push positives from their sentence
    when minimised; the sign here is that of its text.
    """
    to_anchor = 1 - F.cosine_similarity(objects, anchor[:, None], dim=-1)
    to_negatives = 1 - F.normalize(objects, dim=-1) @ F.normalize(negatives, dim=-1).T
    every = to_negatives.sum(-1)
    positive = to_anchor - every
    negative = 2 * to_negatives.amin(-1) - to_anchor - every
    return expression_mean(target * positive + (1 - target) * negative, track_mask, counted)
