"""The training of the head of the small DVIS++ of moving shapes: re-identification, tracker and refiner on a frozen segmenter.

As in the paper (Zhang et al., "DVIS++", 2023, sections 3.2 to 3.4) the embedding for re-identification is trained by a contrastive
loss between the frames of a clip, and tracker and refiner by the classes and masks of their tracks, matched with the objects over the
clip; the tracker with noise. All are trained in one run. Tracker and refiner start as what hands the segmenter's queries on, with its
masks and classes, which saves most of their steps.

Three losses are added, of heads that training alone reads. From the tracks of the tracker the place and the size of the object are
told: else two equal objects are told apart in ways from which no linear layer reads where they are. From those of the refiner, whose
output is a track's token, they are told with their changes in time (`pipelines.dvis_motion`). And from both, which of the frame's
queries has the object: the segmenter often exchanges its queries, and the tracker must find the object again.

Letters: B clips, T frames, N queries, A objects, M matched tracks, h w cells, C channels, C2 = 2 C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.dvis_motion import MotionHead
from pipelines.dvis_segmenter import FRAMES, GEOMETRY, optimize, place_loss
from pipelines.shapes_segmenter import CHANNELS, CLASS_WEIGHT, CLASSES, MASK_WEIGHT, ShapesVideo, class_loss, matched
from rvos_cache.trackers.dvis import DvisHead, ReferringTracker, ReidQueries, TemporalRefiner
from rvos_cache.trackers.dvis.referring import TrackerState
from rvos_cache.trackers.mask2former.layers import Attention, FeedForward, Mlp
from rvos_cache.trackers.mask2former.segmenter import Segmenter
from rvos_select.losses.matching import bce_costs, dice_costs

LAYERS, HIDDEN = 2, 256
"""Of the tracker and the refiner."""
CLIPS, CLIP = 4, 16
"""Clips of a step of the tracker, and their successive frames."""
SCALE = 0.1
"""Temperature of the contrastive loss."""
NOISE = 0.5
"""Share of the frames in which the tracker has the queries in random order and must find each object again. Source: DVIS++, 3.3."""
MOTION_WEIGHT, POINTER = 2.0, 64
"""Weight of the loss of `MotionHead`; channels in which tracks and queries are compared."""


@dataclass(frozen=True)
class Tracked:
    """What the frozen segmenter says of a video, and the truth in its terms.

    q: (T, N, C), before the last LayerNorm; features: float16 (T, h, w, C); shares: float16 (A, T, h, w), of each cell that an
    object covers; owners: int64 (T, N), the object that a query has, -1 for none; labels: (A,).
    """

    q: Tensor
    features: Tensor
    shares: Tensor
    owners: Tensor
    labels: Tensor


class NoisyTracker(ReferringTracker):
    """The tracker; in training some frames have their queries in random order, so that it learns to find objects by its reference."""

    def matched(self, raw: Tensor, order: Tensor, state: TrackerState | None) -> Tensor:
        if self.training and state is not None:
            order = torch.stack([row[torch.randperm(len(row))] if torch.rand(()) < NOISE else row for row in order])
        return super().matched(raw, order, state)


class Pointer(nn.Module):
    """A comparison of tracks with the queries of their frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.tracks, self.queries = nn.Linear(channels, POINTER), nn.Linear(channels, POINTER)

    def loss(self, tracks: Tensor, raw: Tensor, owners: Tensor, objects: Tensor) -> Tensor:
        """Cross-entropy of which query has the track's object, in the frames where one has it.

        tracks: (T, M, C2), of the objects (M,); raw: (T, N, C2); owners: (T, N), as in `Tracked`.
        """
        logits = self.tracks(tracks) @ self.queries(self.norm(raw)).transpose(1, 2) / POINTER**0.5
        own = owners[:, None] == objects[:, None]
        shown = own.any(-1)
        return F.cross_entropy(logits[shown], own[shown].int().argmax(-1), reduction="sum") / shown.sum().clamp(min=1)


class Trained(nn.Module):
    """The head; and the mask head of its tracker and the heads that tell where a track is, which only training reads."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        width = 2 * CHANNELS
        tracker = NoisyTracker(width, HIDDEN, LAYERS, len(CLASSES))
        self.head = DvisHead(ReidQueries(CHANNELS), tracker, TemporalRefiner(width, HIDDEN, LAYERS, len(CLASSES), CHANNELS))
        self.mask_embed = Mlp(width, CHANNELS)
        self.tracked_place, self.refined_motion = nn.Linear(width, 3), MotionHead(width)
        self.tracked_pointer, self.refined_pointer = Pointer(width), Pointer(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("in_proj_bias"):
                nn.init.zeros_(parameter)
        norm = segmenter.model.model.transformer_module.decoder.layernorm
        self.head.reid.decoder_norm.load_state_dict(norm.state_dict())
        self.head.reid.decoder_norm.requires_grad_(False)
        self._start_at(segmenter.model)

    @torch.no_grad()
    def _start_at(self, model: Any) -> None:
        """At first a track is the segmenter's queries with their embeddings, and has the masks and the classes of these."""
        for module in (*self.head.tracker.modules(), *self.head.refiner.modules()):
            if isinstance(module, Attention | FeedForward | nn.Conv1d):
                last: Any = getattr(module, "out_proj", getattr(module, "linear2", module))
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        decoder = model.model.transformer_module.decoder
        embedder = [layer for layer in decoder.mask_predictor.mask_embedder.modules() if isinstance(layer, nn.Linear)]
        for mlp in (self.mask_embed, self.head.refiner.mask_embed):
            for own, layer in zip(mlp.layers, embedder):
                assert isinstance(own, nn.Linear)
                _copy(own, layer, None if layer is not embedder[0] else decoder.layernorm)
        _copy(self.head.refiner.class_embed, model.class_predictor, decoder.layernorm)

    def loss(self, clips: Sequence[Tracked]) -> Tensor:
        """The losses of clips of equal length."""
        queries, raw = self.head.reid(torch.stack([clip.q for clip in clips]))
        contrastive = contrastive_loss(queries, torch.stack([clip.owners for clip in clips]))
        # Embeddings are learned by the contrastive loss alone, as in DVIS++, whose tracker is trained on a frozen segmenter.
        queries, raw = queries.detach(), raw.detach()
        tracked = self.head.tracker(queries, raw)
        refined = self.head.refiner(tracked.embeds.detach(), raw)
        normed = self.head.tracker.decoder_norm(tracked.embeds)
        embeds, places = self.mask_embed(normed), self.tracked_place(normed)
        total = contrastive
        for b, clip in enumerate(clips):
            loss, rows, objects = clip_loss(tracked.logits[b].mean(0), embeds[b], clip)
            shares = clip.shares[objects].float()
            loss = loss + MASK_WEIGHT * place_loss(places[b, :, rows].transpose(0, 1), shares)
            loss = loss + self.tracked_pointer.loss(normed[b, :, rows], raw[b], clip.owners, objects)
            total = total + loss / len(clips)
            loss, rows, objects = clip_loss(refined.logits[b], refined.mask_embed[b], clip)
            tokens = refined.embeds[b, :, rows]
            loss = loss + MOTION_WEIGHT * self.refined_motion.loss(tokens.transpose(0, 1), clip.shares[objects].float())
            loss = loss + self.refined_pointer.loss(tokens, raw[b], clip.owners, objects)
            total = total + loss / len(clips)
        return total


def _copy(to: nn.Linear, layer: nn.Linear, norm: nn.LayerNorm | None) -> None:
    """Let a linear layer be a smaller one of its first inputs and outputs, behind the scale and the shift of a LayerNorm.

    The LayerNorm over twice as many channels, the others of which are zero, gives the root of two times as large ones.
    """
    rows, columns = layer.weight.shape
    nn.init.zeros_(to.weight)
    nn.init.zeros_(to.bias)
    to.bias[:rows] = layer.bias if norm is None else layer.bias + layer.weight @ norm.bias
    to.weight[:rows, :columns] = layer.weight if norm is None else layer.weight * norm.weight / 2**0.5


@torch.inference_mode()
def track_segments(segmenter: Segmenter, video: ShapesVideo) -> Tracked:
    """What the segmenter says of a video; its queries are matched with the objects of their frame by the costs of its training."""
    images = torch.stack([GEOMETRY.image(frame) for frame in video.frames])
    parts = [segmenter.segment(part) for part in images.split(FRAMES)]
    q = torch.cat([part.q for part in parts])
    features = torch.cat([part.mask_features for part in parts]).permute(0, 2, 3, 1)
    normed = segmenter.norm(q)
    logits = torch.einsum("tnc,thwc->tnhw", segmenter.mask_embed(normed), features).flatten(2)
    classes = segmenter.class_logits(normed)
    shares = torch.stack([GEOMETRY.shares(torch.from_numpy(masks)) for masks in video.masks])
    owners = torch.full(q.shape[:2], -1)
    for t in range(len(q)):
        truth = shares[:, t].flatten(1)
        shown = (truth.sum(1) > 1).nonzero()[:, 0]
        bce, dice = bce_costs(logits[t], truth[shown]), dice_costs(logits[t], truth[shown])
        rows, columns = matched(classes[t], video.labels[shown], bce, dice)
        owners[t, rows] = shown[columns]
    return Tracked(q.clone(), features.half().clone(), shares.half(), owners, video.labels)


def train_head(segmenter: Segmenter, videos: Sequence[Tracked], steps: int, seed: int, rate: float = 5e-4) -> DvisHead:
    """The head, trained on random clips."""
    torch.manual_seed(seed)
    model = Trained(segmenter)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.01)
    rng = np.random.default_rng(seed)

    def loss() -> Tensor:
        return model.loss([_clip(videos[i], rng) for i in rng.integers(len(videos), size=CLIPS)])

    optimize(loss, optimizer, steps, rate, "tracker")
    return model.head.eval()


def _clip(video: Tracked, rng: np.random.Generator) -> Tracked:
    """CLIP successive frames, forwards or backwards."""
    start = int(rng.integers(len(video.q) - CLIP + 1))
    times = torch.arange(start, start + CLIP)
    times = times.flip(0) if rng.random() < 0.5 else times
    return Tracked(video.q[times], video.features[times], video.shares[:, times], video.owners[times], video.labels)


def clip_loss(logits: Tensor, embeds: Tensor, clip: Tracked) -> tuple[Tensor, Tensor, Tensor]:
    """Class, BCE and Dice losses of tracks, after one-to-one matching with the objects over all frames by their costs; and the matched
    tracks and their objects, int64 (M,).

    logits: (N, K + 1); embeds: (T, N, C), mask embeddings, whose masks are compared in all cells.
    """
    features, truth = clip.features.float(), clip.shares.float().flatten(1)
    shown = (truth.sum(1) > 1).nonzero()[:, 0]
    masks = torch.einsum("tnc,thwc->nthw", embeds, features).flatten(1)
    with torch.no_grad():
        costs = bce_costs(masks, truth[shown]), dice_costs(masks, truth[shown])
        rows, columns = matched(logits, clip.labels[shown], *costs)
    objects = shown[columns]
    pairs, own = masks[rows], truth[objects]
    p = pairs.sigmoid()
    dice = 1 - (2 * (p * own).sum(1) + 1) / (p.sum(1) + own.sum(1) + 1)
    # Objects cover few cells, so their mean over all cells would hardly count.
    bce = F.binary_cross_entropy_with_logits(pairs, own, reduction="none").mean(1) / (4 * own.mean(1))
    loss = CLASS_WEIGHT * class_loss(logits, rows, clip.labels[objects]) + MASK_WEIGHT * (bce.mean() + dice.mean())
    return loss, rows, objects


def contrastive_loss(queries: Tensor, owners: Tensor) -> Tensor:
    """Cross-entropy of which query of the next frame has the same object: queries (B, T, N, 2C), owners (B, T, N)."""
    embeds = F.normalize(queries, dim=-1)
    cosines = embeds[:, :-1] @ embeds[:, 1:].transpose(2, 3) / SCALE
    same = (owners[:, :-1, :, None] == owners[:, 1:, None]) & (owners[:, :-1, :, None] >= 0)
    rows = same.any(-1)
    losses = F.cross_entropy(cosines[rows], same[rows].int().argmax(-1), reduction="sum")
    return losses / rows.sum().clamp(min=1)
