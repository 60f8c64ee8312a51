"""A small DVIS++ for moving shapes, trained on a CPU from nothing, so that its frozen tracks mean something.

`python -m pipelines.dvis_shapes --out out/dvis_shapes`. As in the paper (Zhang et al., "DVIS++", 2023, section 3) the parts are
trained one after the other: first Mask2Former on single frames; then, on its frozen output, the embedding for re-identification by a
contrastive loss between the frames of a clip, the referring tracker, and the temporal refiner. The last three are trained in one run,
the tracker without noise, and matched with the objects over the clip. Instance masks, tracks and classes of moving shapes are exact.

Two losses are added that large models do without. In the place of the weights of COCO that Mask2Former starts from, its backbone and
pixel decoder first learn to tell colour and shape of the object in each cell: else its queries find objects but do not learn in some
thousand steps what these look like. And heads that training alone reads tell the place and the size of the object from each query
and each track, as the box losses of DETR do: else two equal objects are told apart in ways from which no linear layer reads where
they are, and no selector reads motion.

Letters: B clips, T frames, N queries, A objects, h w cells, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.shapes_segmenter import (
    CHANNELS,
    CLASS_WEIGHT,
    CLASSES,
    MASK_WEIGHT,
    ShapesVideo,
    class_loss,
    draw_video,
    make_segmenter,
    matched,
    mirrored,
)  # fmt: skip
from rvos_cache.cli import run_command
from rvos_cache.shapes.scene import COLOURS, SHAPES, SIZE
from rvos_cache.system.files import new_folder
from rvos_cache.system.progress import Progress
from rvos_cache.trackers.dvis import DvisHead, ReferringTracker, ReidQueries, TemporalRefiner
from rvos_cache.trackers.dvis.checkpoint import HEAD_FILE
from rvos_cache.trackers.mask2former.geometry import square_geometry
from rvos_cache.trackers.mask2former.layers import Mlp
from rvos_cache.trackers.mask2former.segmenter import Segmenter
from rvos_select.losses.matching import bce_costs, dice_costs

SIDE = 128
"""Pixels of both sides of the frames, which have about as many as those of 96x160."""
GEOMETRY = square_geometry(SIZE, SIDE)
FRAMES, STRIDE = 8, 4
"""Frames of a step of the segmenter; every so many frames of a video are used for it."""
DECODER_LAYERS, POINTS = 3, 512
"""Of the segmenter: one layer and half of the points of VITA's, which saves a third of the time."""
COVERED, PRETRAINING_RATE = 0.35, 2e-3
COUNTS = (len(COLOURS), len(SHAPES))
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
@click.option("--videos", default=600, show_default=True)
@click.option("--steps", default=4000, show_default=True, help="Of the segmenter.")
@click.option("--track-videos", default=240, show_default=True, help="Those of --videos that the tracker is trained on.")
@click.option("--track-steps", default=1500, show_default=True, help="Of re-identification, tracker and refiner.")
@click.option("--seed", default=11, show_default=True, help="Of videos and weights; other videos than the demo's.")
def dvis_shapes(out: Path, videos: int, steps: int, track_videos: int, track_steps: int, seed: int) -> None:
    """Train and write the checkpoint that `--tracker dvis --set checkpoint=OUT` takes."""
    train_dvis(out, videos, steps, track_videos, track_steps, seed)
    click.echo(f"checkpoint: {out}")


def train_dvis(out: Path, videos: int, steps: int, track_videos: int, track_steps: int, seed: int) -> Path:
    """The folder of the trained checkpoint; one that is there is left as it is, and so is its trained segmenter beside it."""
    from safetensors.torch import save_file

    if (out / HEAD_FILE).exists():
        return out
    first = train_segmenter(out.with_name(f"{out.name}.segmenter"), videos, steps, seed)
    segmenter = Segmenter(str(first), "Mask2Former checkpoint")
    head = train_head(segmenter, [track_segments(segmenter, draw_video(seed, i)) for i in range(track_videos)], track_steps, seed)
    with new_folder(out) as folder:
        segmenter.model.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in head.official().items()}, folder / HEAD_FILE, {"format": "pt"})
    return out


# Mask2Former on single frames.


def train_segmenter(out: Path, videos: int, steps: int, seed: int, rate: float = 8e-4, pretraining: int | None = None) -> Path:
    """The folder of a Mask2Former trained on single frames by its own loss; one that is there is left as it is.

    pretraining: steps before, by default an eighth of `steps`.
    """
    if out.exists():
        return out
    torch.manual_seed(seed)
    model, place = make_segmenter(DECODER_LAYERS, POINTS), nn.Linear(CHANNELS, 3)
    optimizer = torch.optim.AdamW([*model.parameters(), *place.parameters()], lr=rate, weight_decay=0.01)
    frames = _frames(_every(videos, seed), seed)

    def loss() -> Tensor:
        images, masks, labels = next(frames)
        output = model(images, mask_labels=masks, class_labels=labels)
        normed = model.model.transformer_module.decoder.layernorm(output.transformer_decoder_last_hidden_state)
        logits = zip(output.masks_queries_logits.detach().flatten(2), output.class_queries_logits.detach(), place(normed))
        placed = [_frame_place_loss(*own, masks[b], labels[b]) for b, own in enumerate(logits)]
        total: Tensor = output.loss + MASK_WEIGHT * torch.stack(placed).mean()
        return total

    pretrain(model.model.pixel_level_module, frames, max(1, steps // 8) if pretraining is None else pretraining)
    _optimize(loss, optimizer, steps, rate, "segmenter")
    with new_folder(out) as folder:
        model.save_pretrained(folder)
    return out


def pretrain(pixels: nn.Module, frames: Iterator[tuple[Tensor, list[Tensor], list[Tensor]]], steps: int) -> None:
    """Train backbone and pixel decoder to tell colour and shape of the object in each cell of all four maps."""
    heads = nn.ModuleList(nn.Linear(CHANNELS, sum(COUNTS)) for _ in range(4))
    optimizer = torch.optim.AdamW([*pixels.parameters(), *heads.parameters()], lr=PRETRAINING_RATE, weight_decay=0.01)

    def loss() -> Tensor:
        images, masks, labels = next(frames)
        output = pixels(images)
        total = images.new_zeros(())
        for head, maps in zip(heads, (output.decoder_last_hidden_state, *output.decoder_hidden_states)):
            classes = cell_labels(masks, labels, SIDE // maps.shape[-1])
            logits = head(maps.permute(0, 2, 3, 1)[classes >= 0]).split(COUNTS, -1)
            for own, truth in zip(logits, (classes[classes >= 0] // len(SHAPES), classes[classes >= 0] % len(SHAPES))):
                total = total + F.cross_entropy(own, truth, reduction="sum") / max(len(truth), 1)
        return total

    _optimize(loss, optimizer, steps, PRETRAINING_RATE, "pixel decoder")


def _frame_place_loss(mask_logits: Tensor, logits: Tensor, places: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """The place loss of a frame's queries. mask_logits: (N, cells); logits: (N, K + 1); places: (N, 3); masks: (A, H, W)."""
    shares = GEOMETRY.shares(masks)
    truth = shares.flatten(1)
    rows, columns = matched(logits, labels, bce_costs(mask_logits, truth), dice_costs(mask_logits, truth))
    return place_loss(places[rows][:, None], shares[columns][:, None])


def cell_labels(masks: Sequence[Tensor], labels: Sequence[Tensor], stride: int) -> Tensor:
    """The class of the object that covers most of each cell, and COVERED of it at least, int64 (frames, h, w); -1 where none does."""
    out = []
    for own, classes in zip(masks, labels):
        shares, which = F.pad(GEOMETRY.shares(own, stride), (0, 0, 0, 0, 0, 1)).max(0)
        out.append(torch.where(shares >= COVERED, F.pad(classes, (0, 1))[which], -1))
    return torch.stack(out)


def _every(videos: int, seed: int) -> list[tuple[Any, Any, Tensor]]:
    """(frame, masks (A, H, W), labels) of every STRIDE-th frame."""
    out = []
    for index in range(videos):
        video = draw_video(seed, index)
        out += [(video.frames[t], video.masks[:, t].copy(), video.labels) for t in range(0, len(video.frames), STRIDE)]
    return out


def _frames(pool: Sequence[tuple[Any, Any, Tensor]], seed: int) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Images (FRAMES, 3, SIDE, SIDE) of random frames, half of them mirrored, and what each shows."""
    rng = np.random.default_rng(seed)
    while True:
        images, masks, labels = [], [], []
        for i in rng.integers(len(pool), size=FRAMES):
            frame, truth, own = pool[i]
            flip = rng.random() < 0.5
            shown = truth.any((1, 2))
            images.append(GEOMETRY.image(mirrored(frame, flip)))
            masks.append(torch.from_numpy(mirrored(truth[shown][..., None], flip)[..., 0]).float())
            labels.append(own[torch.from_numpy(shown)])
        yield torch.stack(images), masks, labels


def _optimize(loss: Any, optimizer: torch.optim.Optimizer, steps: int, rate: float, name: str) -> None:
    """`steps` steps of the loss that `loss()` gives; the rate rises for a twentieth of them, then falls to nothing."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    parameters, mean = [p for group in optimizer.param_groups for p in group["params"]], 0.0
    with Progress(name, steps, unit="steps") as bar:
        for step in range(steps):
            value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            mean += (value.item() - mean) / min(step + 1, 100)
            bar.advance(title=f"loss {mean:.2f}")


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

    _optimize(loss, optimizer, steps, rate, "tracker")
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


def place_loss(places: Tensor, shares: Tensor) -> Tensor:
    """Mean distance of places (A, T, 3) from those of shares (A, T, h, w), in the frames that show the object; 0 if none does."""
    where, visible = places_of(shares)
    total: Tensor = (places - where).abs().mean(-1)[visible].sum() / visible.sum().clamp(min=1)
    return total


def places_of(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Centre x and y and size of objects, float (A, T, 3), in which the frame is 2 long, high and wide, and its middle 0; and in which
    frames an object is visible, bool (A, T). shares: (A, T, h, w)."""
    h, w = shares.shape[2:]
    area = shares.sum((2, 3))
    x, y = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (w, h))
    inside = area.clamp(min=1e-6)
    centre_x, centre_y = (shares.sum(2) @ x) / inside, (shares.sum(3) @ y) / inside
    return torch.stack([centre_x, centre_y, 2 * (area / (h * w)).sqrt()], -1), area > 1


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
