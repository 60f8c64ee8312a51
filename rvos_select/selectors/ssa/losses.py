"""SSA's losses: 49 terms over the layers of its two decoders and one over the similarity of matched queries.

Pan et al., "Semantic and Sequential Alignment for RVOS", CVPR 2025, section 3.4, and the released code where the paper is silent.
Letters: B clips, T frames, Q queries, A objects of the expression, K layers of the frame decoder that are handed on, C channels,
h w cells, H W pixels, P points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_select.losses.matching import assign
from rvos_select.losses.points import bce_loss, dice_loss, sample, uncertain_points
from rvos_select.selectors.ssa.config import SsaConfig

REFERRED, NONE = 0, 1
Pairs = tuple[Tensor, Tensor]
"""Queries and their objects, int64 of one length."""


class ClipOutput(NamedTuple):
    """What the losses read of B clips."""

    frame_logits: Tensor
    """(L, B, T, Q, 2), L predictions of the frame decoder, the first before any layer."""
    frame_masks: Tensor
    """(L, B, T, Q, h, w) mask logits."""
    video_logits: Tensor
    """(V, K, B, Q, 2), V layers of the video decoder."""
    mask_embed: Tensor
    """(V, K, B, Q, C), whose product with `mask_features` are mask logits."""
    mask_features: Tensor
    """(B, T, C, h, w)."""
    frame_embed: Tensor
    """(K, B, T, Q, C) of linked frame queries."""
    clip_embed: Tensor
    """(K, B, Q, C) of the last layer's video queries."""
    order: Tensor | None = None
    """int64 (K, B, T, Q): linked query n of frame t is the frame's query order[..., t, n]. similarity_order=own needs it."""


def normalisers(truth: Sequence[Tensor], queries: int, handed_on: int) -> dict[str, float]:
    """What the losses of clips are divided by. truth: for each clip the masks (A, T, H, W) of its objects.

    clips; object_frames: objects in the frames that show them; objects: that some frame shows; pairs: of matched queries of one clip
    and layer. The sums over several batches are those of all their clips.
    """
    totals = {"clips": 0.0, "object_frames": 0.0, "objects": 0.0, "pairs": 0.0}
    for masks in truth:
        visible = masks.flatten(2).any(2)
        objects, in_frames = int(visible.any(1).sum()), visible.sum(0)
        matched = int(in_frames.clamp(max=queries).sum()) + min(objects, queries)
        own = {"clips": 1, "object_frames": int(visible.sum()), "objects": objects, "pairs": handed_on * matched**2}
        totals = {name: totals[name] + own[name] for name in totals}
    return totals


@torch.no_grad()
def costs(logits: Tensor, masks: Tensor, truth: Tensor, points: Tensor, config: SsaConfig) -> Tensor:
    """Costs (Q, A) of queries with logits (Q, 2) and mask logits (Q, T, h, w), and objects (A, T, H, W).

    bce_weight · BCE + dice_weight · Dice − class_weight · p(referred), at points (P, 2) that all masks and frames share.
    """
    values, targets = (sample(m.float().flatten(0, 1)[None], points[None])[0].unflatten(0, m.shape[:2]) for m in (masks, truth))
    return _costs_at_points(logits, values.flatten(1), targets.flatten(1), config)


def _costs_at_points(logits: Tensor, values: Tensor, targets: Tensor, config: SsaConfig) -> Tensor:
    """As `costs`, of logits (..., Q, 2), mask logits (..., Q, P) and objects (..., A, P) at points -> (..., Q, A)."""
    products = values @ targets.transpose(-1, -2)
    bce = (F.softplus(values).sum(-1, keepdim=True) - products) / values.shape[-1]
    p = values.sigmoid()
    both = p.sum(-1, keepdim=True) + targets.sum(-1)[..., None, :]
    dice = 1 - (2 * (p @ targets.transpose(-1, -2)) + 1) / (both + 1)
    referred = logits.float().softmax(-1)[..., REFERRED, None]
    return config.bce_weight * bce + config.dice_weight * dice - config.class_weight * referred


def losses(
    output: ClipOutput, truth: Sequence[Tensor], config: SsaConfig, divide_by: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """The losses of B clips, each with the masks (A, T, H, W) of its objects, float or bool.

    Returns sums over the layers, without weights: frame_class, frame_bce, frame_dice, video_class, video_bce, video_dice; similarity;
    and loss, their weighted sum, which is minimised. divide_by: the `normalisers` of the whole step, by default of these clips.
    """
    own = terms(output, truth, config, divide_by)
    names = ("frame_class", "frame_bce", "frame_dice", "video_class", "video_bce", "video_dice", "similarity")
    sums = {name: torch.stack([value for term, value in own.items() if term.rpartition("/")[0] == name]).sum() for name in names}
    weights = {"class": config.class_weight, "bce": config.bce_weight, "dice": config.dice_weight, "": config.similarity_weight}
    total = torch.stack([weights[name.partition("_")[2]] * value for name, value in sums.items()]).sum()
    return {**sums, "loss": total}


def terms(
    output: ClipOutput, truth: Sequence[Tensor], config: SsaConfig, divide_by: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Every term by "name/layer", without weights: 3 of each prediction of both decoders, and the similarity."""
    queries, handed_on = output.frame_logits.shape[3], len(output.frame_embed)
    counts = divide_by or normalisers(truth, queries, handed_on)
    divisors = {name: max(count, 1.0) for name, count in counts.items()}
    parts = [_clip_terms(output, b, masks, config, divisors) for b, masks in enumerate(truth)]
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def _clip_terms(output: ClipOutput, b: int, truth: Tensor, config: SsaConfig, divisors: Mapping[str, float]) -> dict[str, Tensor]:
    """The terms of clip `b` alone, divided by the divisors of all clips."""
    visible = truth.flatten(2).any(2)
    # An object that no frame of the clip shows is no target.
    objects = truth[visible.any(1)].float()
    visible = visible[visible.any(1)]
    frame_pairs = _match_frames(output.frame_logits[:, b], output.frame_masks[:, b], objects, visible, config)
    out: dict[str, Tensor] = {}
    for layer, (logits, masks, pairs) in enumerate(zip(output.frame_logits[:, b], output.frame_masks[:, b], frame_pairs)):
        bce, dice = _frame_mask_losses(masks, objects, pairs, config)
        out[f"frame_class/{layer}"] = _class_loss(logits, [rows for rows, _ in pairs], config) / divisors["clips"]
        out[f"frame_bce/{layer}"] = bce / divisors["object_frames"]
        out[f"frame_dice/{layer}"] = dice / divisors["object_frames"]
    video_pairs: list[Pairs] = []
    handed_on = len(output.frame_embed)
    for layer, (logits, embed) in enumerate(zip(output.video_logits[:, :, b], output.mask_embed[:, :, b])):
        video_pairs = _match_videos(logits, embed, output.mask_features[b], objects, config)
        bce, dice = _video_mask_losses(embed, output.mask_features[b], objects, video_pairs, config)
        out[f"video_class/{layer}"] = _class_loss(logits, [rows for rows, _ in video_pairs], config) / divisors["clips"]
        out[f"video_bce/{layer}"] = bce / (handed_on * divisors["objects"])
        out[f"video_dice/{layer}"] = dice / (handed_on * divisors["objects"])
    last = frame_pairs[len(frame_pairs) - handed_on :]
    out["similarity/0"] = _similarity(output, b, last, video_pairs, config) / divisors["pairs"]
    return out


@torch.no_grad()
def _match_frames(logits: Tensor, masks: Tensor, objects: Tensor, visible: Tensor, config: SsaConfig) -> list[list[Pairs]]:
    """The pairs of each layer and frame: logits (L, T, Q, 2), masks (L, T, Q, h, w), objects (A, T, H, W), visible bool (A, T)."""
    layers, frames = logits.shape[:2]
    points = torch.rand(layers * frames, config.points, 2, device=logits.device)
    values = sample(masks.float().flatten(0, 1), points).unflatten(0, (layers, frames))
    truth = objects.transpose(0, 1).expand(layers, -1, -1, -1, -1).flatten(0, 1)
    targets = sample(truth, points).unflatten(0, (layers, frames))
    table = _costs_at_points(logits, values, targets, config).cpu()
    shown = visible.T.cpu()
    out = []
    for layer in range(layers):
        pairs = []
        for t in range(frames):
            present = torch.nonzero(shown[t])[:, 0]
            rows, columns = assign(table[layer, t][:, present])
            pairs.append((rows.to(logits.device), present[columns].to(logits.device)))
        out.append(pairs)
    return out


@torch.no_grad()
def _match_videos(logits: Tensor, embed: Tensor, features: Tensor, objects: Tensor, config: SsaConfig) -> list[Pairs]:
    """The pairs of each of K: logits (K, Q, 2), embed (K, Q, C), features (T, C, h, w), objects (A, T, H, W)."""
    points = torch.rand(len(logits), config.points, 2, device=logits.device)
    # The masks of all queries are fewer than the channels of the features, so sampling them is cheaper than sampling the features.
    masks = torch.einsum("kqc,tchw->kqthw", embed.float(), features.float())
    values = sample(masks.flatten(1, 2), points).unflatten(1, masks.shape[1:3]).flatten(2)
    out = []
    for own_logits, own_values, own_points in zip(logits, values, points):
        targets = sample(objects.flatten(0, 1)[None], own_points[None])[0].unflatten(0, objects.shape[:2]).flatten(1)
        out.append(assign(_costs_at_points(own_logits, own_values, targets, config)))
    return out


def _frame_mask_losses(masks: Tensor, objects: Tensor, pairs: Sequence[Pairs], config: SsaConfig) -> tuple[Tensor, Tensor]:
    """Sums of BCE and of Dice over the pairs of each frame: masks (T, Q, h, w), objects (A, T, H, W)."""
    logits = torch.cat([masks[t, rows] for t, (rows, _) in enumerate(pairs)]).float()
    truth = torch.cat([objects[columns, t] for t, (_, columns) in enumerate(pairs)])
    points = uncertain_points(logits.detach(), config.points)
    values, targets = (sample(m[:, None], points)[:, 0] for m in (logits, truth))
    return bce_loss(values, targets), dice_loss(values, targets)


def _video_mask_losses(
    embed: Tensor, features: Tensor, objects: Tensor, pairs: Sequence[Pairs], config: SsaConfig
) -> tuple[Tensor, Tensor]:
    """Sums of BCE and of Dice over the pairs of each of K: embed (K, Q, C), features (T, C, h, w), objects (A, T, H, W)."""
    matched = torch.cat([embed[k, rows] for k, (rows, _) in enumerate(pairs)]).float()
    logits = torch.einsum("pc,tchw->pthw", matched, features.float())
    truth = objects[torch.cat([columns for _, columns in pairs])]
    points = uncertain_points(logits.detach().flatten(0, 1), config.points)
    shape = (len(matched), logits.shape[1] * config.points)
    values, targets = (sample(m.flatten(0, 1)[:, None], points).reshape(shape) for m in (logits, truth))
    return bce_loss(values, targets), dice_loss(values, targets)


def _class_loss(logits: Tensor, matched: Sequence[Tensor], config: SsaConfig) -> Tensor:
    """Weighted cross-entropy of logits (n, Q, 2), its weighted mean over all of them; matched: n times the queries with an object."""
    labels = torch.full(logits.shape[:2], NONE, device=logits.device)
    for row, queries in zip(labels, matched):
        row[queries] = REFERRED
    weight = torch.tensor([1.0, config.no_object_weight], device=logits.device)
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight)


def _similarity(
    output: ClipOutput, b: int, frame_pairs: Sequence[Sequence[Pairs]], video_pairs: Sequence[Pairs], config: SsaConfig
) -> Tensor:
    """Sum of BCE over all pairs of matched queries of clip `b` and one layer, the target 1 where both match one object.

    frame_pairs: of each of the K handed-on layers and frames; video_pairs: of each of K, in the last video layer.
    """
    total = output.frame_embed.new_zeros((), dtype=torch.float32)
    for k, (of_frames, (video_rows, video_columns)) in enumerate(zip(frame_pairs, video_pairs)):
        frame_embed = output.frame_embed[k, b]
        if config.similarity_order == "own":
            if output.order is None:
                raise ValueError("similarity_order=own needs ClipOutput.order")
            places = output.order[k, b].argsort(-1)
            frame_embed = frame_embed.gather(1, places[..., None].expand_as(frame_embed))
        rows = [frame_embed[t, queries] for t, (queries, _) in enumerate(of_frames)]
        embed = torch.cat([*rows, output.clip_embed[k, b, video_rows]]).float()
        objects = torch.cat([*(columns for _, columns in of_frames), video_columns])
        same = (objects[:, None] == objects[None]).float()
        total = total + F.binary_cross_entropy_with_logits(embed @ embed.T, same, reduction="sum")
    return total
