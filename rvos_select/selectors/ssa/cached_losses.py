"""Losses of SSA's cached form: classes of tracks in each frame and in the video, and the similarity of matched queries.

Masks are given, so the mask losses of `losses` have no gradient and are left out; their place in the matching is taken by costs
that the cache's pixel counts give. Letters: B expressions, T frames, N tracks, A objects, K layers that are handed on, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.types import Overlap
from rvos_select.selectors.matching import MatchRule, TrackCosts, counted_track_costs, match_tracks
from rvos_select.selectors.ssa.config import SsaConfig
from rvos_select.selectors.ssa.losses import NONE, REFERRED


class TrackOutput(NamedTuple):
    """What the losses read of B expressions, whose tracks are real where bool (B, T, N) `tracks` is True."""

    frame_logits: Tensor
    """(L, B, T, N, 2), the first before any layer."""
    video_logits: Tensor
    """(V, K, B, N, 2)."""
    frame_embed: Tensor
    """(K, B, T, N, C)."""
    clip_embed: Tensor
    """(K, B, N, C)."""
    tracks: Tensor


def track_losses(output: TrackOutput, overlaps: tuple[Overlap, ...], counted: Tensor, config: SsaConfig) -> dict[str, Tensor]:
    """Means over the expressions `counted`, bool (B,), summed over the layers: frame_class, video_class, similarity, and loss.

    overlaps: for each expression the counts of its tracks and objects in the frames of the batch.
    """
    parts: dict[str, list[Tensor]] = {"frame_class": [], "video_class": [], "similarity": []}
    # One copy from the GPU for all matchings.
    referred = [logits.detach().float().softmax(-1)[..., REFERRED].cpu() for logits in (output.frame_logits, output.video_logits)]
    for b, overlap in enumerate(overlaps):
        if not bool(counted[b]):
            continue
        tables = (referred[0][:, b], referred[1][:, :, b])
        for name, value in zip(parts, _expression_losses(output, b, overlap, tables, config)):
            parts[name].append(value)
    means = {name: torch.stack(values).mean() for name, values in parts.items()}
    weights = {"frame_class": config.class_weight, "video_class": config.class_weight, "similarity": config.similarity_weight}
    return {**means, "loss": torch.stack([weights[name] * value for name, value in means.items()]).sum()}


def _expression_losses(
    output: TrackOutput, b: int, overlap: Overlap, referred: tuple[Tensor, Tensor], config: SsaConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """The three losses of expression `b`. referred: probabilities (L, T, N) of frames and (V, K, N) of the video, on the CPU."""
    device, tracks = output.tracks.device, len(overlap.area)
    real = output.tracks[b, : len(overlap.annotated), :tracks].cpu() & torch.from_numpy(overlap.annotated)[:, None]
    in_frames = [costs_of(_frame(overlap, t), config) for t in range(len(real))]
    in_clip = costs_of(overlap, config)
    frame_class = output.frame_logits.new_zeros(())
    pairs: list[list[tuple[Tensor, Tensor]]] = []
    for logits, table in zip(output.frame_logits[:, b, : len(real), :tracks].float(), referred[0][:, : len(real), :tracks]):
        labels, own = torch.full(real.shape, NONE), []
        for t, costs in enumerate(in_frames):
            rows, objects = matched_pairs(table[t], costs, real[t], config)
            labels[t, rows] = REFERRED
            own.append((rows, objects))
        pairs.append(own)
        frame_class = frame_class + _class_loss(logits, labels.to(device), real.to(device), config)
    shown = real.any(0)
    handed_on = output.video_logits.shape[1]
    video_class, video_pairs = output.frame_logits.new_zeros(()), list[tuple[Tensor, Tensor]]()
    for layer, tables in zip(output.video_logits[:, :, b, :tracks].float(), referred[1][..., :tracks]):
        video_pairs = [matched_pairs(own, in_clip, shown, config) for own in tables]
        labels = torch.full(layer.shape[:2], NONE)
        for row, (rows, _) in zip(labels, video_pairs):
            row[rows] = REFERRED
        video_class = video_class + _class_loss(layer, labels.to(device), shown.expand(handed_on, -1).to(device), config)
    return frame_class, video_class, _similarity(output, b, pairs[len(pairs) - handed_on :], video_pairs)


def costs_of(overlap: Overlap, config: SsaConfig) -> TrackCosts:
    """The costs of tracks and objects by the pixels that are counted."""
    return counted_track_costs(overlap, config.dice_weight, config.cost_iou)


def matched_pairs(referred: Tensor, costs: TrackCosts, real: Tensor, config: SsaConfig) -> tuple[Tensor, Tensor]:
    """Tracks and their objects by probabilities (N,) and costs, among the tracks `real`, bool (N,)."""
    rule = MatchRule(config.match, config.positive_iou, cost_class=config.class_weight)
    matches = match_tracks(costs, referred, rule, real)
    return matches.tracks, matches.objects


def _frame(overlap: Overlap, t: int) -> Overlap:
    """The counts of one frame."""
    at = np.array([t])
    return Overlap(overlap.inter[:, :, at], overlap.area[:, at], overlap.gt_area[:, at], overlap.annotated[at])


def _class_loss(logits: Tensor, labels: Tensor, real: Tensor, config: SsaConfig) -> Tensor:
    """Weighted cross-entropy of logits (n, N, 2), its weighted mean over the tracks `real`, bool (n, N); of none 0."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    weight = (torch.where(labels == NONE, config.no_object_weight, 1.0) * real).flatten()
    return (each * weight).sum() / weight.sum().clamp(min=config.no_object_weight)


def _similarity(
    output: TrackOutput,
    b: int,
    frame_pairs: list[list[tuple[Tensor, Tensor]]],
    video_pairs: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """Mean BCE over the pairs of matched queries of one of the K layers, the target 1 where both match one object; of none 0."""
    total, count = output.frame_embed.new_zeros((), dtype=torch.float32), 0
    for k, (of_frames, (rows, objects)) in enumerate(zip(frame_pairs, video_pairs)):
        embed = [output.frame_embed[k, b, t, tracks] for t, (tracks, _) in enumerate(of_frames)]
        matched = torch.cat([*embed, output.clip_embed[k, b, rows]]).float()
        ids = torch.cat([*(own for _, own in of_frames), objects]).to(matched.device)
        same = (ids[:, None] == ids[None]).float()
        total = total + F.binary_cross_entropy_with_logits(matched @ matched.T, same, reduction="sum")
        count += same.numel()
    return total / max(count, 1)
