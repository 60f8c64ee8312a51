"""DeRVOS's loss: the classes of tracks in each frame, with the labels of a matching whose masks are given (L = L_cls).

Letters: B expressions, N tracks, A objects, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_select.data.batch import Batch
from rvos_select.selectors.dervos_config import DervosConfig
from rvos_select.selectors.matching import (
    IGNORED,
    NO_OBJECT,
    REFERRED,
    Matches,
    MatchRule,
    TrackCosts,
    count_parts,
    counted_track_costs,
    match_tracks,
    soft_parts,
    soft_track_costs,
)


def matched_parts(config: DervosConfig) -> tuple[str, ...]:
    """The parts of a batch that the loss reads."""
    if config.match_cost == "counts":
        return count_parts(config.match_scope)
    return (*soft_parts(config.match_scope), *(("overlap",) if config.visible_only else ()))


def track_losses(scores: Tensor, batch: Batch, config: DervosConfig) -> dict[str, Tensor]:
    """Means over the expressions that have words: loss = class_weight · class; and as logs, without a gradient, matched_iou, the mean
    IoU of an expression's matched pairs, and uncovered, the number of its visible objects that no track covers.

    scores: S_f (B, N, T, 2). class: cross-entropy in each frame, its weighted mean over the tracks, the mean over the real frames.
    Raises ValueError without ground truth.
    """
    counted = batch.word_mask.any(1)
    matches = matched(scores, batch, config)
    labels = torch.stack([_padded(own.labels, scores.shape[1]) for own in matches]).to(scores.device)
    each = F.cross_entropy(
        scores.movedim(-1, 1), labels[..., None].expand(scores.shape[:3]), reduction="none", ignore_index=IGNORED
    )
    weight = torch.where(labels == NO_OBJECT, config.no_object_weight, 1.0).masked_fill(labels == IGNORED, 0.0)
    weight = weight[..., None].expand(each.shape)
    if config.visible_only:
        of_video = "overlap.video" in matched_parts(config)
        hidden = (labels == REFERRED)[..., None] & ~shown(batch, of_video)[:, None].to(labels.device)
        weight = weight.masked_fill(hidden, 0.0)
    in_frames = (each * weight).sum(1) / weight.sum(1).clamp(min=config.no_object_weight)
    frames = batch.frame_mask.expand(in_frames.shape)
    in_clips = in_frames.masked_fill(~frames, 0.0).sum(1) / frames.sum(1).clamp(min=1)
    value = in_clips[counted].sum() / counted.sum().clamp(min=1)
    rows = counted.cpu().nonzero()[:, 0].tolist()
    iou = torch.stack([matches[b].iou.mean() if len(matches[b].iou) else torch.zeros(()) for b in rows] or [torch.zeros(())])
    uncovered = sum(matches[b].uncovered for b in rows) / max(len(rows), 1)
    return {
        "loss": config.class_weight * value,
        "class": value,
        "matched_iou": iou.mean().to(scores.device),
        "uncovered": scores.new_tensor(uncovered),
    }


@torch.no_grad()
def matched(scores: Tensor, batch: Batch, config: DervosConfig) -> list[Matches]:
    """The matching of each expression: 2.4 of the plan, with p_n of the scores' mean over the real frames."""
    frames = batch.frame_mask[:, None, :, None].expand(len(scores), 1, -1, 1)
    mean = scores.masked_fill(~frames, 0.0).sum(2) / frames.sum(2).clamp(min=1)
    referred = mean.float().softmax(-1)[..., REFERRED].cpu()
    rule = MatchRule(config.match, config.positive_iou, config.least_iou, config.duplicate_iou, config.cost_class)
    out = []
    for costs, own, real in zip(_costs(batch, config), referred, batch.track_mask.cpu()):
        tracks = len(costs.masks)
        out.append(match_tracks(costs, own[:tracks], rule, real[:tracks]))
    return out


def _costs(batch: Batch, config: DervosConfig) -> list[TrackCosts]:
    """Of each expression. Raises ValueError without ground truth."""
    if config.match_cost == "counts":
        if batch.overlap is None:
            raise ValueError("DeRVOS's loss needs Batch.overlap; this split hides its ground truth")
        return [counted_track_costs(overlap, config.cost_dice, config.cost_bce) for overlap in batch.overlap]
    if "soft" not in batch.measured:
        raise ValueError("DeRVOS's loss needs Batch.measured['soft']; this split hides its ground truth")
    return soft_track_costs(batch, config.cost_bce, config.cost_dice)


def shown(batch: Batch, of_video: bool) -> Tensor:
    """bool (B, T): the frames of the batch that show an object of the expression. of_video: counts are of all frames of the video."""
    assert batch.overlap is not None and batch.frame_index is not None
    out = torch.zeros(len(batch), batch.tokens.shape[2], dtype=torch.bool)
    for b, overlap in enumerate(batch.overlap):
        visible = torch.from_numpy((overlap.gt_area > 0).any(0) & overlap.annotated)
        index = batch.frame_index[min(b, len(batch.frame_index) - 1)].cpu()
        index = index[index >= 0]
        out[b, : len(index)] = visible[index] if of_video else visible
    return out


def _padded(labels: Tensor, tracks: int) -> Tensor:
    return F.pad(labels, (0, tracks - len(labels)), value=IGNORED)
