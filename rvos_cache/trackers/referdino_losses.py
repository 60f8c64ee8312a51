"""ReferDINO's matching and losses of one decoder layer, or of the encoder.

Liang et al., "ReferDINO", ICCV 2025, and the released code (iSEE-Laboratory/ReferDINO, 9a4cda1) where the paper is silent: it gives
neither formulas nor weights. An expression has one target, the union of its objects, and one query of the clip is matched with it.
Letters: B clips, each of one expression, T frames, Q queries, H W pixels of the padded input, h w cells of its map of stride 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.media.boxes import corners

TERMS = ("cls", "l1", "giou", "mask", "dice", "proj")
"""What costs and weights are given for."""
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal losses. Source: Lin et al., "Focal Loss", ICCV 2017, section 4.1."""
BOX_EPS, LOG_EPS = 1e-6, 1e-8
"""Added to the areas under a fraction, and inside the logarithms of the costs of classes."""
STRIDE = 4


class Predicted(NamedTuple):
    """What one layer predicts."""

    logits: Tensor
    """(B, T, Q), before the sigmoid."""
    boxes: Tensor
    """(B, T, Q, 4): centre x, centre y, width, height as shares of the frame without its padding."""
    masks: Tensor
    """(B, T, Q, h, w) mask logits."""


class Truth(NamedTuple):
    """The union of the objects of each expression, in frames that are padded at the right and the bottom."""

    boxes: Tensor
    """(B, T, 4) as those of `Predicted`; zeros where no object is visible."""
    valid: Tensor
    """bool (B, T): the frame shows an object."""
    masks: Tensor
    """bool (B, T, 4h, 4w)."""
    real: Tensor
    """bool (B, 4h, 4w): False in the padding."""


@torch.no_grad()
def match(predicted: Predicted, truth: Truth, costs: Mapping[str, float]) -> Tensor:
    """The query of each clip of the least cost, int64 (B,), the first of equal ones.

    costs: the weight of each of `TERMS`. Classes are averaged over the frames that show the object (0 if none does), boxes over all
    frames.
    """
    out = []
    for b in range(len(predicted.logits)):
        # Clip by clip, because the encoder's 900 masks are large.
        clip = Predicted(*(field[b].float() for field in predicted))
        target = Truth(*(field[b] for field in truth))
        terms = {
            "cls": _class_cost(clip.logits, target.valid),
            "l1": l1(clip.boxes, target.boxes[:, None]).mean(0),
            "giou": -giou(clip.boxes, target.boxes[:, None], smooth=True).mean(0),
            **_mask_costs(clip.masks, target),
        }
        out.append(torch.stack([costs[name] * terms[name] for name in TERMS]).sum(0).argmin())
    return torch.stack(out)


def losses(
    predicted: Predicted,
    truth: Truth,
    *,
    costs: Mapping[str, float],
    weights: Mapping[str, float],
    matched_by: Predicted | None = None,
    num_boxes: float | None = None,
) -> dict[str, Tensor]:
    """The terms `TERMS` without weights, and `loss`, their weighted sum, which is minimised.

    costs, weights: of each of `TERMS`. matched_by: what the queries are matched by, instead of `predicted`: the encoder's are matched
    by its proposals. num_boxes: what all terms are divided by, the frames that show an object in all clips of a step (at least 1); by
    default those of these clips. So the losses of parts of a step, with the number of the whole step, add up to its loss. A clip that
    never shows the object has a cls loss alone.
    """
    queries = match(predicted if matched_by is None else matched_by, truth, costs)
    divisor = max(float(truth.valid.sum()) if num_boxes is None else num_boxes, 1.0)
    rows = torch.arange(len(queries), device=queries.device)
    logits = predicted.logits.float()
    labels = torch.zeros_like(logits)
    labels[rows, :, queries] = truth.valid.to(logits.dtype)
    boxes, masks = predicted.boxes[rows, :, queries].float(), predicted.masks[rows, :, queries].float()
    # A frame without the object has a box of zeros, and counts too in the released code, in a clip that shows it elsewhere.
    shown = truth.valid.any(1)
    visible = Truth(*(field[shown] for field in truth))
    terms = {
        "cls": focal(logits, labels).sum(),
        "l1": l1(boxes[shown], visible.boxes).sum(),
        "giou": (1 - giou(boxes[shown], visible.boxes)).sum(),
        **_mask_losses(masks[shown], visible),
    }
    terms = {name: value / divisor for name, value in terms.items()}
    return {**terms, "loss": torch.stack([weights[name] * terms[name] for name in TERMS]).sum()}


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    """The sigmoid focal loss of each logit, labels in [0, 1] of its shape: α_t (1 - p_t)^γ BCE (Lin et al., ICCV 2017, Eq. 5)."""
    p = logits.sigmoid()
    p_t = p * labels + (1 - p) * (1 - labels)
    alpha_t = ALPHA * labels + (1 - ALPHA) * (1 - labels)
    return alpha_t * (1 - p_t) ** GAMMA * F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def class_costs(logits: Tensor) -> Tensor:
    """The focal loss of each logit as a positive less that as a negative, of its shape."""
    p = logits.sigmoid()
    positive = -ALPHA * (1 - p) ** GAMMA * (p + LOG_EPS).log()
    negative = -(1 - ALPHA) * p**GAMMA * (1 - p + LOG_EPS).log()
    return positive - negative


def l1(boxes: Tensor, truth: Tensor) -> Tensor:
    """The sum of the absolute differences of boxes (..., 4) and (..., 4), (...)."""
    return (boxes - truth).abs().sum(-1)


def giou(boxes: Tensor, truth: Tensor, smooth: bool = False) -> Tensor:
    """Generalised IoU of boxes (..., 4) and (..., 4), centre and size, (...) (Rezatofighi et al., CVPR 2019, Algorithm 1).

    IoU - (hull - union) / hull, 1e-6 added to what is divided by. smooth: added to both sides of the IoU and subtracted from the
    union, as in the released matching; that differs for boxes of a few pixels.
    """
    a, b = corners(boxes), corners(truth)
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    more = BOX_EPS if smooth else 0.0
    return (inter + more) / (union + BOX_EPS) - (hull - union + more) / (hull + BOX_EPS)


def dice(p: Tensor, truth: Tensor) -> Tensor:
    """(2 Σ p y + 1) / (Σ p + Σ y + 1) over the last axis of probabilities and truth that broadcast (Milletari et al., 3DV 2016)."""
    return (2 * (p * truth).sum(-1) + 1) / (p.sum(-1) + truth.sum(-1) + 1)


def _class_cost(logits: Tensor, valid: Tensor) -> Tensor:
    """(Q,) of logits (T, Q), bool (T,)."""
    return class_costs(logits)[valid].sum(0) / valid.sum().clamp(min=1)


def _mask_costs(logits: Tensor, truth: Truth) -> dict[str, Tensor]:
    """mask, dice and proj, each (Q,), of logits (T, Q, h, w) and the truth of one clip. A logit in the padding is 0, p = 0.5."""
    logits = logits * _cells(truth.real)
    target = _cells(truth.masks).to(logits.dtype)
    p, queries = logits.sigmoid(), logits.shape[1]
    # Σ y f(1) + (1 - y) f(0) = Σ f(0) + y (f(1) - f(0)), f the focal loss for a label.
    absent = (1 - ALPHA) * p**GAMMA * F.softplus(logits)
    difference = ALPHA * (1 - p) ** GAMMA * F.softplus(-logits) - absent
    focal_sum = absent.sum((0, 2, 3)) + torch.einsum("tqhw,thw->q", difference, target)
    sums = p.sum((0, 2, 3)) + target.sum()
    overlap = torch.einsum("tqhw,thw->q", p, target)
    projected = [dice(p.amax(axis).transpose(0, 1).flatten(1), target.amax(axis - 1).flatten()) for axis in (2, 3)]
    return {
        "mask": focal_sum / (logits.numel() / queries),
        "dice": -(2 * overlap + 1) / (sums + 1),
        "proj": -(projected[0] + projected[1]) / 2,
    }


def _mask_losses(logits: Tensor, truth: Truth) -> dict[str, Tensor]:
    """Sums over the clips of mask, dice and proj of the matched logits (B, T, h, w). proj has padding in it, the others do not."""
    real = _cells(truth.real)[:, None].to(logits.dtype)
    target = _cells(truth.masks).to(logits.dtype)
    cells = (real.expand_as(logits)).flatten(1).sum(1).clamp(min=1)
    p = logits.sigmoid()
    projected = [dice(logits.amax(axis).sigmoid().flatten(1), target.amax(axis).flatten(1)) for axis in (2, 3)]
    return {
        "mask": ((focal(logits, target) * real).flatten(1).sum(1) / cells).sum(),
        "dice": (1 - dice((p * real).flatten(1), (target * real).flatten(1))).sum(),
        "proj": (1 - (projected[0] + projected[1]) / 2).sum(),
    }


def _cells(pixels: Tensor) -> Tensor:
    """The pixels (..., 4h, 4w) that stand for the cells of stride 4, (..., h, w), as the released code takes them."""
    return pixels[..., STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
