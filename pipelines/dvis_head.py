"""The training of the head of the small DVIS++ of moving shapes: re-identification, tracker and refiner on a frozen segmenter.

As in the paper (Zhang et al., "DVIS++", 2023, sections 3.2 to 3.4) the embedding for re-identification is trained by a contrastive
loss between the frames of a clip, and tracker and refiner, one after the other, by the classes and masks of their tracks, matched with
the objects over the clip. The tracker is trained without noise, which gave no better tracks here. Tracker and refiner start as what
hands the segmenter's queries on, with its masks and classes, which saves most of their steps.

Three losses are added, of heads that training alone reads. From the tracks of the tracker the place and the size of the object are
told: else two equal objects are told apart in ways from which no linear layer reads where they are. From the same it is told which of
the frame's queries has the object: the segmenter often exchanges its queries, and the tracker must find the object again. From those of
the refiner, whose output is a track's token, place and size are told with their changes in time (`pipelines.dvis_motion`). The first
convolution of the refiner starts with such changes: from random weights it learns none beside the losses of masks.

Letters: B clips, T frames, N queries, A objects, M matched tracks, h w cells, C channels, C2 = 2 C.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.dvis_motion import FASTEST, MotionHead, slope_taps
from pipelines.dvis_segmenter import FRAMES, GEOMETRY, optimize, place_loss
from pipelines.shapes_segmenter import CHANNELS, CLASS_WEIGHT, CLASSES, MASK_WEIGHT, ShapesVideo, class_loss, matched
from rvos_cache.errors import naming
from rvos_cache.trackers.dvis import DvisHead, ReferringTracker, ReidQueries, TemporalRefiner
from rvos_cache.trackers.mask2former.layers import Attention, FeedForward, Mlp
from rvos_cache.trackers.mask2former.segmenter import Segmenter
from rvos_select.losses.matching import bce_costs, dice_costs

LAYERS, HIDDEN = 2, 256
"""Of the tracker and the refiner."""
CLIPS, REFINER_CLIPS, CLIP = 4, 5, 24
"""Clips of a step of the tracker and of the refiner; their successive frames, as many as the shortest video has: where a video is much
longer than a clip, the tracker drifts away from its objects."""
RATE, REFINER_RATE = 5e-4, 1e-3
"""Learning rates of the tracker and of the refiner, which at 2e-3 loses the changes of places again in some thousand steps."""
REFINER = 1.75
"""Steps of the refiner, as a share of those of the tracker."""
STRIDE = 2
"""Masks are compared in every so many cells of both axes, from a random first one."""
COVERING = 0.5
"""IoU with an object in a frame from which on a track has it there."""
SCALE = 0.1
"""Temperature of the contrastive loss."""
MOTION_WEIGHT, POINTER = 2.0, 64
"""Weight of the loss of `MotionHead`; channels in which tracks and queries are compared."""


@dataclass(frozen=True)
class Segmented:
    """The frozen segmenter's output on a video, and the truth in its terms.

    q: (T, N, C), before the last LayerNorm; features: float16 (T, h, w, C); shares: float16 (A, T, h, w), of each cell that an
    object covers; owners: int64 (T, N), the object that a query has, -1 for none; labels: (A,).
    """

    q: Tensor
    features: Tensor
    shares: Tensor
    owners: Tensor
    labels: Tensor

    def at(self, times: Tensor) -> Segmented:
        """Some frames, int64 (T',), of the video."""
        return Segmented(self.q[times], self.features[times], self.shares[:, times], self.owners[times], self.labels)


@dataclass(frozen=True)
class Tracked:
    """The frozen tracker's output on a video.

    embeds, raw: (T, N, C2), what the refiner reads; tracks, objects, covers: which tracks have which objects, as from `match_tracks`.
    """

    video: Segmented
    embeds: Tensor
    raw: Tensor
    tracks: Tensor
    objects: Tensor
    covers: Tensor

    def at(self, times: Tensor) -> Tracked:
        """Some frames, int64 (T',), of the video; the tracks have the objects that they have in the whole of it."""
        video, covers = self.video.at(times), self.covers[:, times]
        return Tracked(video, self.embeds[times], self.raw[times], self.tracks, self.objects, covers)


class Pointer(nn.Module):
    """A comparison of tracks with the queries of their frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.tracks, self.queries = nn.Linear(channels, POINTER), nn.Linear(channels, POINTER)

    def loss(self, tracks: Tensor, raw: Tensor, owners: Tensor, objects: Tensor) -> Tensor:
        """Cross-entropy of which query has the track's object, in the frames where one has it.

        tracks: (T, M, C2), of the objects (M,); raw: (T, N, C2); owners: (T, N), as in `Segmented`.
        """
        logits = self.tracks(tracks) @ self.queries(self.norm(raw)).transpose(1, 2) / POINTER**0.5
        own = owners[:, None] == objects[:, None]
        shown = own.any(-1)
        return F.cross_entropy(logits[shown], own[shown].int().argmax(-1), reduction="sum") / shown.sum().clamp(min=1)


class Trained(nn.Module):
    """The head; and the tracker's mask head and the heads of the added losses, which training alone reads."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        width = 2 * CHANNELS
        tracker = ReferringTracker(width, HIDDEN, LAYERS, len(CLASSES))
        self.head = DvisHead(ReidQueries(CHANNELS), tracker, TemporalRefiner(width, HIDDEN, LAYERS, len(CLASSES), CHANNELS))
        self.mask_embed = Mlp(width, CHANNELS)
        self.place, self.pointer, self.motion = nn.Linear(width, 3), Pointer(width), MotionHead(width)
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
        # Of the two convolutions behind each other the last alone: had both no weights, neither would ever get a gradient.
        convolutions = {list(layers.children())[-1] for layers in self.head.refiner.conv_short_aggregate_layers}
        for module in (*self.head.tracker.modules(), *self.head.refiner.modules()):
            if isinstance(module, Attention | FeedForward) or module in convolutions:
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

    def tracker_loss(self, clips: Sequence[Segmented]) -> Tensor:
        """The losses of re-identification and tracker on clips of equal length."""
        queries, raw = self.head.reid(torch.stack([clip.q for clip in clips]))
        total = contrastive_loss(queries, torch.stack([clip.owners for clip in clips]))
        # Embeddings are learned by the contrastive loss alone, as in DVIS++, whose tracker is trained on a frozen segmenter.
        queries, raw = queries.detach(), raw.detach()
        tracked = self.head.tracker(queries, raw)
        normed = self.head.tracker.decoder_norm(tracked.embeds)
        embeds, places = self.mask_embed(normed), self.place(normed)
        for b, clip in enumerate(clips):
            loss, rows, objects = clip_loss(tracked.logits[b].mean(0), embeds[b], clip)
            distance = place_loss(places[b, :, rows].transpose(0, 1), clip.shares[objects].float())
            loss = loss + MASK_WEIGHT * distance + self.pointer.loss(normed[b, :, rows], raw[b], clip.owners, objects)
            total = total + loss / len(clips)
        return total

    @torch.no_grad()
    def tracked(self, video: Segmented) -> Tracked:
        """The tracker's output on a video, and which tracks have its objects, by the masks of the tracker's own head."""
        queries, raw = self.head.reid(video.q[None])
        embeds = self.head.tracker(queries, raw).embeds[0]
        masks = self.mask_embed(self.head.tracker.decoder_norm(embeds))
        logits = torch.einsum("tnc,thwc->nthw", masks, video.features.float())
        return Tracked(video, embeds, raw[0], *match_tracks(logits > 0, video.shares > 0.5))

    @torch.no_grad()
    def start_changes(self) -> None:
        """Let the first convolution of the refiner start with the changes of the places that are read from the tracker's output.

        Their unit is half of FASTEST. Each is in two channels, of either sign, as a ReLU follows.
        """
        convolution: Any = next(self.head.refiner.conv_short_aggregate_layers[0].children())
        scale = self.head.tracker.decoder_norm.weight * 2 / torch.tensor(FASTEST)[:, None]
        changes = (self.place.weight * scale)[..., None] * slope_taps()
        convolution.weight[: 2 * len(changes)] = torch.cat([changes, -changes])
        convolution.bias[: 2 * len(changes)] = 0

    def refiner_loss(self, clips: Sequence[Tracked]) -> Tensor:
        """The losses of the refiner on clips of equal length."""
        refined = self.head.refiner(torch.stack([clip.embeds for clip in clips]), torch.stack([clip.raw for clip in clips]))
        total = refined.embeds.new_zeros(())
        for b, clip in enumerate(clips):
            loss, *_ = clip_loss(refined.logits[b], refined.mask_embed[b], clip.video)
            tokens, shares = refined.embeds[b, :, clip.tracks].transpose(0, 1), clip.video.shares[clip.objects].float()
            total = total + (loss + MOTION_WEIGHT * self.motion.loss(tokens, shares, clip.covers)) / len(clips)
        return total


def match_tracks(masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tracks and their objects, int64 (M,), one-to-one, with the largest sum of their IoU over the whole video; and in which frames a
    track has its object, with an IoU of COVERING or more, bool (M, T).

    masks: bool (N, T, h, w), of the tracks; truth: bool (A, T, h, w), of the objects.
    """
    own, objects = masks.flatten(2).float(), truth.flatten(2).float()
    shared = torch.einsum("ntp,atp->nat", own, objects)
    total = own.sum(2)[:, None] + objects.sum(2)[None] - shared
    rows, columns = linear_sum_assignment((shared.sum(2) / total.sum(2).clamp(min=1)).numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns), (shared >= COVERING * total.clamp(min=1))[rows, columns]


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
def segment_video(segmenter: Segmenter, video: ShapesVideo) -> Segmented:
    """The segmenter's output on a video; its queries are matched with the objects of their frame by the costs of its training."""
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
    return Segmented(q.clone(), on_disk(features.half()), shares.half(), owners, video.labels)


def on_disk(values: Tensor) -> Tensor:
    """A copy in a temporary file without a name, which memory holds as far as there is room.

    Raises OSError if the file cannot be written.
    """
    folder = Path(tempfile.gettempdir())
    with naming(folder), tempfile.NamedTemporaryFile(prefix="rvos-", dir=folder) as file:
        values.contiguous().numpy().tofile(file)
        file.flush()
        return torch.from_file(file.name, shared=True, size=values.numel(), dtype=values.dtype).view(values.shape)


def train_head(segmenter: Segmenter, videos: Sequence[Segmented], steps: int, seed: int) -> DvisHead:
    """The head, trained on random clips.

    `steps` steps are of re-identification and tracker; then, on their frozen output, a share REFINER of as many of the refiner.
    """
    torch.manual_seed(seed)
    model, rng = Trained(segmenter), np.random.default_rng(seed)

    def train(modules: Sequence[nn.Module], loss: Callable[[], Tensor], steps: float, rate: float, name: str) -> None:
        parameters = [own for module in modules for own in module.parameters() if own.requires_grad]
        optimize(loss, torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01), max(2, round(steps)), rate, name)

    def segmented_clips() -> list[Segmented]:
        return [videos[i].at(_times(len(videos[i].q), rng)) for i in rng.integers(len(videos), size=CLIPS)]

    def tracked_clips() -> list[Tracked]:
        return [tracked[i].at(_times(len(tracked[i].raw), rng)) for i in rng.integers(len(tracked), size=REFINER_CLIPS)]

    first = [model.head.reid, model.head.tracker, model.mask_embed, model.place, model.pointer]
    train(first, lambda: model.tracker_loss(segmented_clips()), steps, RATE, "tracker")
    tracked = [model.tracked(video) for video in videos]
    model.start_changes()
    train(
        [model.head.refiner, model.motion], lambda: model.refiner_loss(tracked_clips()), REFINER * steps, REFINER_RATE, "refiner"
    )
    return model.head.eval()


def _times(frames: int, rng: np.random.Generator) -> Tensor:
    """CLIP successive frames of a video, forwards or backwards, int64 (CLIP,)."""
    start = int(rng.integers(frames - CLIP + 1))
    times = torch.arange(start, start + CLIP)
    return times.flip(0) if rng.random() < 0.5 else times


def clip_loss(logits: Tensor, embeds: Tensor, clip: Segmented) -> tuple[Tensor, Tensor, Tensor]:
    """Class, BCE and Dice losses of tracks, after one-to-one matching with the objects over all frames by their costs; and the matched
    tracks and their objects, int64 (M,).

    logits: (N, K + 1); embeds: (T, N, C), mask embeddings, whose masks are compared in one of STRIDE · STRIDE cells.
    """
    y, x = (int(first) for first in torch.randint(STRIDE, (2,)))
    features = clip.features[:, y::STRIDE, x::STRIDE].float()
    truth = clip.shares[:, :, y::STRIDE, x::STRIDE].float().flatten(1)
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
