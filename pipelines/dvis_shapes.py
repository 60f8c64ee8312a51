"""A small DVIS++ for moving shapes, trained on a CPU from nothing, so that its frozen tracks mean something.

`python -m pipelines.dvis_shapes --out out/dvis_shapes`. As in the paper (Zhang et al., "DVIS++", 2023, section 3) the parts are
trained one after the other: first Mask2Former on single frames; then, on its frozen output, the embedding for re-identification by a
contrastive loss between the frames of a clip, the referring tracker, and the temporal refiner. The last three are trained in one run,
the tracker without noise, and matched with the objects over the clip. Instance masks, tracks and classes of moving shapes are exact.

Tracker and refiner start as what hands the segmenter's queries on, with its masks and classes, which saves most of their steps.
The segmenter has losses of its own, `pipelines.dvis_segmenter`. One is added here as well: heads that training alone reads tell the
place and the size of the object from each track, those of the tracker and those of the refiner, whose output is a track's token: else
two equal objects are told apart in ways from which no linear layer reads where they are, and no selector reads motion.

Letters: B clips, T frames, N queries, A objects, h w cells, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.dvis_segmenter import FRAMES, GEOMETRY, optimize, place_loss, train_segmenter
from pipelines.shapes_segmenter import CHANNELS, CLASS_WEIGHT, CLASSES, MASK_WEIGHT, ShapesVideo, class_loss, draw_video, matched
from rvos_cache.cli import run_command
from rvos_cache.errors import InputError
from rvos_cache.system.device import on_device
from rvos_cache.system.files import new_folder
from rvos_cache.trackers.dvis import DvisHead, ReferringTracker, ReidQueries, TemporalRefiner
from rvos_cache.trackers.dvis.checkpoint import HEAD_FILE
from rvos_cache.trackers.mask2former.layers import Attention, FeedForward, Mlp
from rvos_cache.trackers.mask2former.segmenter import Segmenter
from rvos_select.losses.matching import bce_costs, dice_costs

LAYERS, HIDDEN = 2, 256
"""Of the tracker and the refiner."""
CLIPS, CLIP = 4, 16
"""Clips of a step of the tracker, and their successive frames."""
SCALE = 0.1
"""Temperature of the contrastive loss."""


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


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dvis_shapes"), show_default=True)
@click.option("--videos", default=500, show_default=True)
@click.option("--steps", default=3000, show_default=True, help="Of the segmenter.")
@click.option("--track-videos", default=400, show_default=True, help="Those of --videos that the tracker is trained on.")
@click.option("--track-steps", default=1600, show_default=True, help="Of re-identification, tracker and refiner.")
@click.option("--seed", default=11, show_default=True, help="Of videos and weights; other videos than the demo's.")
def dvis_shapes(out: Path, videos: int, steps: int, track_videos: int, track_steps: int, seed: int) -> None:
    """Train and write the checkpoint that `--tracker dvis --set checkpoint=OUT` takes."""
    check_track_videos("--videos", videos, track_videos)
    train_dvis(out, videos, steps, track_videos, track_steps, seed)
    click.echo(f"checkpoint: {out}")


def check_track_videos(option: str, videos: int, track_videos: int) -> None:
    """Raises InputError where the tracker would be trained on videos that its segmenter, trained on those of `option`, has not seen."""
    if track_videos > videos:
        raise InputError(
            f"--track-videos {track_videos}: more than {option} {videos}, of which they are a part; give {videos} or less"
        )


def train_dvis(out: Path, videos: int, steps: int, track_videos: int, track_steps: int, seed: int) -> Path:
    """The folder of the trained checkpoint; one that is there is left as it is, and so is its trained segmenter beside it."""
    from safetensors.torch import save_file

    if (out / HEAD_FILE).exists():
        return out
    first = train_segmenter(out.with_name(f"{out.name}.segmenter"), videos, steps, seed)
    # Where there is a GPU too: all else of this training is on the CPU.
    with on_device("cpu"):
        segmenter = Segmenter(str(first), "Mask2Former checkpoint")
    head = train_head(segmenter, [track_segments(segmenter, draw_video(seed, i)) for i in range(track_videos)], track_steps, seed)
    with new_folder(out) as folder:
        segmenter.model.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in head.official().items()}, folder / HEAD_FILE, {"format": "pt"})
    return out


# Re-identification, tracker and refiner on what the frozen segmenter says.


class Trained(nn.Module):
    """The head; and the mask head of its tracker and the heads that tell where a track is, which only training reads."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        width = 2 * CHANNELS
        tracker = ReferringTracker(width, HIDDEN, LAYERS, len(CLASSES))
        self.head = DvisHead(ReidQueries(CHANNELS), tracker, TemporalRefiner(width, HIDDEN, LAYERS, len(CLASSES), CHANNELS))
        self.mask_embed = Mlp(width, CHANNELS)
        self.tracked_place, self.refined_place = nn.Linear(width, 3), nn.Linear(width, 3)
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
        """The three losses of clips of equal length."""
        queries, raw = self.head.reid(torch.stack([clip.q for clip in clips]))
        contrastive = contrastive_loss(queries, torch.stack([clip.owners for clip in clips]))
        # Embeddings are learned by the contrastive loss alone, as in DVIS++, whose tracker is trained on a frozen segmenter.
        queries, raw = queries.detach(), raw.detach()
        tracked = self.head.tracker(queries, raw)
        refined = self.head.refiner(tracked.embeds.detach(), raw)
        normed = self.head.tracker.decoder_norm(tracked.embeds)
        embeds, places = self.mask_embed(normed), self.tracked_place(normed)
        refined_places = self.refined_place(refined.embeds)
        total = contrastive
        for b, clip in enumerate(clips):
            total = total + clip_loss(tracked.logits[b].mean(0), embeds[b], places[b], clip) / len(clips)
            total = total + clip_loss(refined.logits[b], refined.mask_embed[b], refined_places[b], clip) / len(clips)
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


def clip_loss(logits: Tensor, embeds: Tensor, places: Tensor, clip: Tracked) -> Tensor:
    """Class, BCE, Dice and place losses of tracks, after one-to-one matching with the objects over all frames by the costs of the first
    three. logits: (N, K + 1); embeds: (T, N, C), mask embeddings, whose masks are compared in all cells; places: (T, N, 3)."""
    features, shares = clip.features.float(), clip.shares.float()
    truth = shares.flatten(1)
    shown = truth.sum(1) > 1
    truth, labels = truth[shown], clip.labels[shown]
    masks = torch.einsum("tnc,thwc->nthw", embeds, features).flatten(1)
    with torch.no_grad():
        rows, columns = matched(logits, labels, bce_costs(masks, truth), dice_costs(masks, truth))
    pairs, own = masks[rows], truth[columns]
    p = pairs.sigmoid()
    dice = 1 - (2 * (p * own).sum(1) + 1) / (p.sum(1) + own.sum(1) + 1)
    # Objects cover few cells, so their mean over all cells would hardly count.
    bce = F.binary_cross_entropy_with_logits(pairs, own, reduction="none").mean(1) / (4 * own.mean(1))
    distance = place_loss(places[:, rows].transpose(0, 1), shares[shown][columns])
    return CLASS_WEIGHT * class_loss(logits, rows, labels[columns]) + MASK_WEIGHT * (bce.mean() + dice.mean() + distance)


def contrastive_loss(queries: Tensor, owners: Tensor) -> Tensor:
    """Cross-entropy of which query of the next frame has the same object: queries (B, T, N, 2C), owners (B, T, N)."""
    embeds = F.normalize(queries, dim=-1)
    cosines = embeds[:, :-1] @ embeds[:, 1:].transpose(2, 3) / SCALE
    same = (owners[:, :-1, :, None] == owners[:, 1:, None]) & (owners[:, :-1, :, None] >= 0)
    rows = same.any(-1)
    losses = F.cross_entropy(cosines[rows], same[rows].int().argmax(-1), reduction="sum")
    return losses / rows.sum().clamp(min=1)


if __name__ == "__main__":
    run_command(dvis_shapes)
