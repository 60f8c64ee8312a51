"""A small Mask2Former for moving shapes, trained on a CPU from nothing, whose queries carry where an object is and what it looks like.

A large Mask2Former starts from weights of COCO and is trained for days. In some thousand steps its own loss gives queries that find
objects, but hardly say where they are, and not which shape they have: in the cross-attention and in the deformable attention of
Mask2Former values carry no position, so that a query has it only if something asks for it. Therefore it is trained in three parts,
with heads that training alone reads. First the backbone tells colour and shape of each object, from the means of its maps over the
object. Then the maps of the pixel decoder do, and each of their cells tells where it is, and the place of the object in it. Then
Mask2Former is trained by its own loss, with that of its cells, and the output of each layer of its decoder tells the place of its
object, as the box loss of DETR's layers asks. The architecture stays Mask2Former's.

Letters: T frames, N queries, A objects, h w cells, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.shapes_segmenter import CHANNELS, MASK_WEIGHT, draw_video, make_segmenter, matched, mirrored
from rvos_cache.shapes.scene import COLOURS, SHAPES, SIZE
from rvos_cache.system.files import new_folder
from rvos_cache.system.progress import Progress
from rvos_cache.trackers.mask2former.geometry import square_geometry
from rvos_select.losses.matching import bce_costs, dice_costs

SIDE = 160
"""Pixels of both sides of the frames, whose objects are of 19 pixels and more, of 96x160."""
GEOMETRY = square_geometry(SIZE, SIDE)
FRAMES, STRIDE = 8, 4
"""Frames of a step; every so many frames of a video are used."""
DECODER_LAYERS, POINTS = 3, 512
"""One layer and half of the points of VITA's, which saves a third of the time."""
FIRST = (0.4, 0.1)
"""Steps of the backbone and of the pixel decoder alone, as shares of those of Mask2Former."""
FIRST_RATE, CELL_WEIGHT = 1.5e-3, 0.5
"""Rate of those steps; weight of the loss of cells in those of Mask2Former."""
COVERED, PLACE_WEIGHT = 0.35, 2.0
"""Share of a cell from which on it is asked for the object in it; weight of places, where an error of 1 is half of a frame."""
LEAST = 80
"""Visible pixels from which on an object is asked for its colour and shape; the smallest have 200."""
COUNTS = (len(COLOURS), len(SHAPES))

Frames = tuple[Tensor, list[Tensor], list[Tensor]]
"""Images (T, 3, SIDE, SIDE); of each its masks, float (A, H, W), and the labels of these, int64 (A,)."""


class MapHeads(nn.Module):
    """Linear heads of some maps, for losses of what they say of the objects: colour and shape, and with `places` where they are."""

    def __init__(self, channels: Sequence[int], places: bool) -> None:
        super().__init__()
        self.classes = nn.ModuleList(nn.Linear(c, sum(COUNTS)) for c in channels)
        self.places = nn.ModuleList(nn.Linear(c, 5) for c in channels if places)

    def forward(self, maps: Sequence[Tensor], masks: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """The loss of maps (T, C, h, w); masks (A, H, W) and labels (A,) of each frame."""
        large = [own.sum((1, 2)) >= LEAST for own in masks]
        total, truth = maps[0].new_zeros(()), torch.cat([own[which] for own, which in zip(labels, large)])
        for head, cells in zip(self.classes, maps):
            shares = [GEOMETRY.shares(own[which], SIDE // cells.shape[-1]) for own, which in zip(masks, large)]
            means = [_means(own, values) for own, values in zip(shares, cells)]
            colours, shapes = head(torch.cat(means)).split(COUNTS, -1)
            for logits, own in ((colours, truth // len(SHAPES)), (shapes, truth % len(SHAPES))):
                total = total + F.cross_entropy(logits, own, reduction="sum") / max(len(own), 1)
        for head, cells in zip(self.places, maps):
            where, inside = cell_places(masks, SIDE // cells.shape[-1])
            values = head(cells.permute(0, 2, 3, 1))
            distance = (values[..., :3] - where).abs().mean(-1)[inside].sum() / inside.sum().clamp(min=1)
            own = (values[..., 3:] - centres(*cells.shape[2:])).abs().mean()
            total = total + PLACE_WEIGHT * (distance + own)
        return total


def train_segmenter(out: Path, videos: int, steps: int, seed: int, rate: float = 8e-4) -> Path:
    """The folder of a Mask2Former trained on single frames; one that is there is left as it is. steps: of its own loss."""
    if out.exists():
        return out
    torch.manual_seed(seed)
    model = make_segmenter(DECODER_LAYERS, POINTS)
    pixels = model.model.pixel_level_module
    for module in pixels.encoder.modules():
        if isinstance(module, nn.Conv2d):
            # ResNet's own start: Mask2Former of transformers draws these weights with a deviation of 0.02, whatever their number.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    frames = frames_of(every_frame(videos, seed), seed)
    heads = MapHeads([CHANNELS] * 4, True)

    def first(module: nn.Module, heads: MapHeads, maps: Callable[[Any], list[Tensor]], share: float, name: str) -> None:
        def loss() -> Tensor:
            images, masks, labels = next(frames)
            value: Tensor = heads(maps(module(images)), masks, labels)
            return value

        optimizer = torch.optim.AdamW([*module.parameters(), *heads.parameters()], lr=FIRST_RATE, weight_decay=0.01)
        optimize(loss, optimizer, max(2, round(share * steps)), FIRST_RATE, name)

    widths = model.config.backbone_config.hidden_sizes
    first(pixels.encoder, MapHeads(widths, False), lambda output: list(output.feature_maps), FIRST[0], "backbone")
    first(pixels, heads, maps_of, FIRST[1], "pixel decoder")
    _train_all(model, heads, frames, steps, rate)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
    return out


def _train_all(model: Any, heads: MapHeads, frames: Iterator[Frames], steps: int, rate: float) -> None:
    """Mask2Former's own loss, that of its cells, and that of the places of the output of its decoder's layers."""
    places = nn.ModuleList(nn.Linear(CHANNELS, 3) for _ in range(DECODER_LAYERS))
    kept: list[Any] = []
    hook = model.model.pixel_level_module.register_forward_hook(lambda _, inputs, output: kept.append(output))
    norm = model.model.transformer_module.decoder.layernorm

    def loss() -> Tensor:
        images, masks, labels = next(frames)
        output = model(images, mask_labels=masks, class_labels=labels, output_hidden_states=True)
        # Of the queries before the first layer, and of the output of each, all of shape (N, T, C).
        states = [norm(state).transpose(0, 1) for state in output.transformer_decoder_hidden_states[1:]]
        predicted = torch.stack([head(state) for head, state in zip(places, states)], 2)
        logits = zip(output.masks_queries_logits.detach().flatten(2), output.class_queries_logits.detach(), predicted)
        placed = torch.stack([_frame_place_loss(*own, masks[b], labels[b]) for b, own in enumerate(logits)]).mean()
        cells = heads(maps_of(kept.pop()), masks, labels)
        total: Tensor = output.loss + DECODER_LAYERS * MASK_WEIGHT * placed + CELL_WEIGHT * cells
        return total

    parameters = [*model.parameters(), *heads.parameters(), *places.parameters()]
    optimize(loss, torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01), steps, rate, "segmenter")
    hook.remove()


def maps_of(output: Any) -> list[Tensor]:
    """All maps (T, C, h, w) of the output of Mask2Former's pixel decoder."""
    return [output.decoder_last_hidden_state, *output.decoder_hidden_states]


def _frame_place_loss(mask_logits: Tensor, logits: Tensor, places: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """The place loss of a frame's queries, the mean over L layers of the decoder.

    mask_logits: (N, cells); logits: (N, K + 1), both of the last layer; places: (N, L, 3); masks: (A, H, W).
    """
    shares = GEOMETRY.shares(masks)
    truth = shares.flatten(1)
    rows, columns = matched(logits, labels, bce_costs(mask_logits, truth), dice_costs(mask_logits, truth))
    return place_loss(places[rows], shares[columns][:, None].expand(-1, places.shape[1], -1, -1))


def _means(shares: Tensor, values: Tensor) -> Tensor:
    """The means (A, C) of values (C, h, w) over objects of shares (A, h, w)."""
    flat = shares.flatten(1)
    return (flat / flat.sum(1, keepdim=True).clamp(min=1e-6)) @ values.flatten(1).T


def cell_places(masks: Sequence[Tensor], stride: int) -> tuple[Tensor, Tensor]:
    """Of the object that covers most of each cell its place, float (T, h, w, 3), and whether it covers COVERED of the cell at least,
    bool (T, h, w). masks: (A, H, W) of each frame."""
    places, inside = [], []
    for own in masks:
        shares = GEOMETRY.shares(own, stride)
        where, _ = places_of(shares[:, None])
        covers, which = F.pad(shares, (0, 0, 0, 0, 0, 1)).max(0)
        inside.append(covers >= COVERED)
        places.append(F.pad(where[:, 0], (0, 0, 0, 1))[which])
    return torch.stack(places), torch.stack(inside)


def place_loss(places: Tensor, shares: Tensor) -> Tensor:
    """Mean distance of places (A, T, 3) from those of shares (A, T, h, w), in the frames that show the object; 0 if none does."""
    where, visible = places_of(shares)
    total: Tensor = (places - where).abs().mean(-1)[visible].sum() / visible.sum().clamp(min=1)
    return total


def places_of(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Centre x and y and size of objects, float (A, T, 3), and in which frames an object is visible, bool (A, T).

    The frame is 2 long, high and wide, and its middle 0. The size is the logarithm of the root of the share of the frame that the
    object covers: objects are of similar sizes, and their roots alone would hardly differ. shares: (A, T, h, w).
    """
    h, w = shares.shape[2:]
    area = shares.sum((2, 3))
    x, y = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (w, h))
    inside = area.clamp(min=1e-6)
    centre_x, centre_y = (shares.sum(2) @ x) / inside, (shares.sum(3) @ y) / inside
    return torch.stack([centre_x, centre_y, 0.5 * (inside / (h * w)).log()], -1), area * 1024 > h * w


def centres(h: int, w: int) -> Tensor:
    """x and y (h, w, 2) of the cells of a map, as in `places_of`."""
    x, y = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (w, h))
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1)


def every_frame(videos: int, seed: int) -> list[tuple[Any, Any, Tensor]]:
    """(frame, masks (A, H, W), labels) of every STRIDE-th frame."""
    out = []
    for index in range(videos):
        video = draw_video(seed, index)
        out += [(video.frames[t], video.masks[:, t].copy(), video.labels) for t in range(0, len(video.frames), STRIDE)]
    return out


def frames_of(pool: Sequence[tuple[Any, Any, Tensor]], seed: int) -> Iterator[Frames]:
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


def optimize(loss: Any, optimizer: torch.optim.Optimizer, steps: int, rate: float, name: str) -> None:
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
            bar.advance(title=f"{name}, loss {mean:.2f}")
