"""Tracks of a cache and the objects of an expression: costs of the masks, which are given, the matching, and the labels it gives.

Letters: B expressions, N tracks, A objects, T frames.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rvos_cache.soft_overlap import SOFT_SPECS
from rvos_cache.types import Overlap
from rvos_select.data.batch import Batch
from rvos_select.losses.matching import SoftSums, assign, counted_costs, soft_costs

REFERRED, NO_OBJECT = 0, 1
"""Labels of a track: the position of its logit."""
IGNORED = -100
"""Label of a track that has no loss; `torch.nn.functional.cross_entropy` leaves it out."""

Scope = Literal["clip", "video"]


class TrackCosts(NamedTuple):
    """Of the tracks and the objects of one expression, on the CPU."""

    masks: Tensor
    """float32 (N, A): the weighted costs of the masks."""
    iou: Tensor
    """float32 (N, A)."""
    visible: Tensor
    """int64, ascending: the objects that a counted frame shows; the others are matched with no track."""


class MatchRule(NamedTuple):
    """How costs become labels."""

    match: Literal["hungarian", "iou_multi"] = "hungarian"
    """hungarian: each object has one positive, its matched track; iou_multi: every other track that covers it is one too."""
    positive_iou: float = 0.5
    """A track covers an object with which its IoU is larger."""
    least_iou: float = 0.0
    """An object whose matched track has no larger IoU with it has no match; 0: each has one, if there are as many tracks."""
    duplicate_iou: float = 1.0
    """A track that is no positive but has a larger IoU with an object has no loss; 1: it is a negative."""
    cost_class: float = 2.0
    """Weight of a track's probability in its costs. The same for all objects, it only chooses between tracks of similar costs."""


class Matches(NamedTuple):
    """What the matching gives, on the CPU."""

    labels: Tensor
    """int64 (N,): REFERRED, NO_OBJECT or IGNORED."""
    tracks: Tensor
    """int64 (M,): the positives, those matched one-to-one first."""
    objects: Tensor
    """int64 (M,): the object of each of them."""
    iou: Tensor
    """float32 (K,): the IoU of each of the K tracks matched one-to-one with its object."""
    uncovered: int
    """Visible objects that no track covers."""


def soft_parts(scope: Scope) -> tuple[str, ...]:
    """What a selector requires for `soft_track_costs`: sums of the frames of the batch, or of all frames of the video."""
    return tuple(f"measured.{spec.name}{'.video' if scope == 'video' else ''}" for spec in SOFT_SPECS)


def count_parts(scope: Scope) -> tuple[str, ...]:
    """What a selector requires for `counted_track_costs`."""
    return ("overlap.video" if scope == "video" else "overlap",)


@torch.no_grad()
def soft_track_costs(batch: Batch, cost_bce: float, cost_dice: float) -> list[TrackCosts]:
    """The costs of each of the B expressions from the sums of soft masks (`soft_parts`): cost_bce · BCE + cost_dice · Dice.

    N and A are those of the batch. Raises KeyError where the batch lacks the sums.
    """
    both, track, truth, cells = (batch.measured[spec.name] for spec in SOFT_SPECS)
    bce, dice, iou = soft_costs(SoftSums(both, track, truth), cells)
    masks = (cost_bce * bce + cost_dice * dice).cpu()
    shown = ((truth > 0) & (cells > 0)[:, None]).any(-1).cpu()
    return [TrackCosts(*row, visible.nonzero()[:, 0]) for row, visible in zip(zip(masks, iou.cpu()), shown)]


def counted_track_costs(overlap: Overlap, cost_dice: float, cost_iou: float) -> TrackCosts:
    """The costs of one expression from counts of binary masks (`count_parts`): cost_dice · Dice + cost_iou · (1 - IoU).

    N is that of the counts, without the batch's padding.
    """
    dice, one_minus_iou = (torch.from_numpy(cost) for cost in counted_costs(overlap))
    visible = torch.from_numpy((overlap.gt_area[:, overlap.annotated] > 0).any(1)).nonzero()[:, 0]
    return TrackCosts(cost_dice * dice + cost_iou * one_minus_iou, 1 - one_minus_iou, visible)


def match_tracks(costs: TrackCosts, referred: Tensor, rule: MatchRule, real: Tensor | None = None) -> Matches:
    """Labels of the tracks of one expression: one-to-one by costs.masks - cost_class · referred, then as `rule` says.

    referred: float (N,), probability that the expression refers to the track, on the CPU; real: bool (N,), the tracks that may be
    matched, by default all; the others are IGNORED. N and A may be 0.
    """
    real = torch.ones(len(referred), dtype=torch.bool) if real is None else real
    tracks, visible = real.nonzero()[:, 0], costs.visible
    rows, columns = assign(costs.masks[tracks][:, visible] - rule.cost_class * referred[tracks, None])
    rows, objects = tracks[rows], visible[columns]
    iou = costs.iou[rows, objects]
    if rule.least_iou:
        good = iou > rule.least_iou
        rows, objects, iou = rows[good], objects[good], iou[good]
    labels = torch.where(real, NO_OBJECT, IGNORED)
    if not len(visible):
        return Matches(labels, rows, objects, iou, 0)
    best, nearest = costs.iou[:, visible].max(1)
    labels[best > rule.duplicate_iou] = IGNORED
    if rule.match == "iou_multi":
        others = real & (best > rule.positive_iou)
        others[rows] = False
        more = others.nonzero()[:, 0]
        rows, objects = torch.cat([rows, more]), torch.cat([objects, visible[nearest[more]]])
    labels[rows] = REFERRED
    covered = (costs.iou[tracks][:, visible] > rule.positive_iou).any(0)
    return Matches(labels, rows, objects, iou, int((~covered).sum()))
