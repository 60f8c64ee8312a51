"""The losses of the small GroundingDINO of `pipelines.gdino_shapes`.

Letters: B frames, each with one sentence, Q queries, A objects that the sentence names, S = B sentences, L tokens, h w cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.trackers.referdino_losses import Predicted, class_costs, dice, focal, giou, l1
from rvos_select.losses.matching import assign, dice_costs

WEIGHTS = {"cls": 2.0, "l1": 5.0, "giou": 2.0, "mask": 5.0, "dice": 2.0}
"""Weights of costs and losses. Source: GroundingDINO's for classes and boxes (cost_class 2, 5, 2); masks: ReferDINO's order."""
MASK_TERMS = ("mask", "dice")


@dataclass(frozen=True)
class Targets:
    """The objects that one sentence names. boxes: (A, 4) as in `Predicted`; masks: float (A, h, w)."""

    boxes: Tensor
    masks: Tensor


@dataclass(frozen=True)
class TokenLogits:
    """The logits of one layer's queries with all sentences of a step. products: (B, Q, S, L), S = B; real, words: bool (S, L), the
    tokens that are no padding, and those of them that are words: not [CLS], "." and [SEP]."""

    products: Tensor
    real: Tensor
    words: Tensor

    def means(self) -> Tensor:
        """The mean over the words of each sentence, (B, Q, S)."""
        return (self.products * self.words).sum(-1) / self.words.sum(-1)

    def own(self) -> Tensor:
        """Those of each frame's own sentence, (B, Q, L)."""
        own: Tensor = self.products.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return own


def weighted(terms: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of terms."""
    return torch.stack([WEIGHTS[name] * value for name, value in terms.items()]).sum()


def detection_losses(predicted: Predicted, tokens: TokenLogits, targets: Sequence[Targets]) -> dict[str, Tensor]:
    """The terms of one layer without weights, sums divided by the number of objects, after one-to-one matching.

    cls: the focal loss of each token, as GroundingDINO's: the words of a sentence are positives of a matched query, all other tokens
    are negatives; divided by the number of words.
    """
    logits, boxes, masks = (field[:, 0].float() for field in predicted)
    labels = torch.zeros_like(logits)
    rows: list[tuple[Tensor, Tensor, Targets, Tensor]] = []
    for b, own in enumerate(targets):
        if len(own.boxes):
            queries, objects = assign(_costs(logits[b], boxes[b], masks[b], own))
            labels[b, queries] = 1.0
            rows.append((boxes[b, queries], masks[b, queries], own, objects))
    count = max(1, sum(len(own.boxes) for own in targets))
    of_tokens = focal(tokens.own(), labels[..., None] * tokens.words[:, None]) * tokens.real[:, None]
    terms = {"cls": (of_tokens.sum((1, 2)) / tokens.words.sum(1)).sum()}
    if rows:
        own_boxes, own_masks = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
        true_boxes = torch.cat([own.boxes[objects] for _, _, own, objects in rows])
        true_masks = torch.cat([own.masks[objects] for _, _, own, objects in rows])
        terms["l1"] = l1(own_boxes, true_boxes).sum()
        terms["giou"] = (1 - giou(own_boxes, true_boxes)).sum()
        terms["mask"] = F.binary_cross_entropy_with_logits(own_masks, true_masks, reduction="none").flatten(1).mean(1).sum()
        terms["dice"] = (1 - dice(own_masks.sigmoid().flatten(1), true_masks.flatten(1))).sum()
    return {name: value / count for name, value in terms.items()}


@torch.no_grad()
def _costs(logits: Tensor, boxes: Tensor, masks: Tensor, targets: Targets) -> Tensor:
    """(Q, A) of queries with logits (Q,), boxes (Q, 4) and masks (Q, h, w)."""
    pairs = boxes[:, None], targets.boxes[None]
    costs = {
        "cls": class_costs(logits)[:, None],
        "l1": l1(*pairs),
        "giou": -giou(*pairs),
        "dice": dice_costs(masks.flatten(1), targets.masks.flatten(1)),
    }
    return torch.stack([WEIGHTS[name] * value.expand(len(boxes), len(targets.boxes)) for name, value in costs.items()]).sum(0)
