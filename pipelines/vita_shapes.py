"""A small VITA for moving shapes, trained on a CPU from nothing, so that its frozen features mean something.

`python -m pipelines.vita_shapes --out out/vita_shapes`. Instance masks, tracks and classes of moving shapes are exact, so
Mask2Former's own loss on frames and VITA's on clips (Heo et al., NeurIPS 2022, section 3.3, without the similarity loss) are
trained together. A class is a shape of a colour, as many as YouTube-VIS has: queries that had to tell objects from ground alone
would say nothing of looks. Letters: B clips, T frames, A objects, K pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.cli import run_command
from rvos_cache.shapes import make_video
from rvos_cache.shapes.scene import COLOURS, SHAPES, Appearance
from rvos_cache.system.files import new_folder
from rvos_cache.system.progress import Progress
from rvos_cache.trackers.vita import HeadSizes, VitaHead, vita_geometry
from rvos_cache.trackers.vita.checkpoint import HEAD_FILE
from rvos_select.losses.matching import assign
from rvos_select.selectors.dmvs.masks import pair_losses, point_costs

CHANNELS, FRAME_QUERIES, VIDEO_QUERIES = 64, 16, 16
CLASSES = {(colour, shape): k for k, (colour, shape) in enumerate(product(COLOURS, SHAPES))}
SIZES = HeadSizes(
    channels=CHANNELS, map_channels=CHANNELS, mask_channels=CHANNELS, frame_queries=FRAME_QUERIES, video_queries=VIDEO_QUERIES,
    classes=len(CLASSES), hidden=256, encoder_layers=2, decoder_layers=3,
)  # fmt: skip
SHORT, LONG = 96, 160
"""The frames' own size, so that nothing is resized."""
POINTS, NO_OBJECT = 1024, 0.1
CLIP, CLIPS = 5, 2


@dataclass(frozen=True)
class Clip:
    """images (T, 3, height, width); masks bool (A, T, height, width); labels int64 (A,), the classes of the objects."""

    images: Tensor
    masks: Tensor
    labels: Tensor

    def frames(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each frame the objects that it shows: masks float (a, height, width), labels (a,)."""
        for masks in self.masks.transpose(0, 1):
            cache = masks.flatten(1).any(1)
            yield masks[cache].float(), self.labels[cache]

    def objects(self) -> tuple[Tensor, Tensor]:
        """The objects that the clip shows: masks float (a, T, height, width), labels (a,)."""
        cache = self.masks.flatten(1).any(1)
        return self.masks[cache].float(), self.labels[cache]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/vita_shapes"), show_default=True)
@click.option("--videos", default=800, show_default=True)
@click.option("--steps", default=6000, show_default=True)
@click.option("--rate", default=5e-4, show_default=True)
@click.option("--seed", default=11, show_default=True, help="Of videos and weights; other videos than the demo's.")
def vita_shapes(out: Path, videos: int, steps: int, rate: float, seed: int) -> None:
    """Train and write the checkpoint that `--tracker vita --set checkpoint=OUT` takes."""
    train_vita(out, videos, steps, rate, seed)
    click.echo(f"checkpoint: {out}")


def train_vita(out: Path, videos: int, steps: int, rate: float, seed: int) -> Path:
    """The folder of the trained checkpoint; one that is there is left as it is."""
    from safetensors.torch import save_file

    if (out / HEAD_FILE).exists():
        return out
    torch.manual_seed(seed)
    segmenter, head = _segmenter(), _head()
    map_inputs: list[Tensor] = []
    segmenter.model.pixel_level_module.decoder.mask_projection.register_forward_pre_hook(
        lambda _, inputs: map_inputs.append(inputs[0])
    )
    parameters = [*segmenter.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    clips, mean = _clips([_video(seed, index) for index in range(videos)], seed), 0.0
    with Progress("train", steps, unit="steps") as bar:
        for step in range(steps):
            loss = _loss(segmenter, head, map_inputs, next(clips))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            mean += (loss.item() - mean) / min(step + 1, 100)
            bar.advance(title=f"loss {mean:.2f}")
    with new_folder(out) as folder:
        segmenter.save_pretrained(folder)
        save_file(head.official(), folder / HEAD_FILE, {"format": "pt"})
    return out


def _loss(segmenter: Any, head: VitaHead, map_inputs: list[Tensor], clips: list[Clip]) -> Tensor:
    """Mask2Former's loss of the frames and VITA's of the clips. map_inputs: inputs of Mask2Former's mask projection."""
    map_inputs.clear()
    masks, labels = zip(*(frame for clip in clips for frame in clip.frames()))
    outputs = segmenter(torch.cat([clip.images for clip in clips]), mask_labels=list(masks), class_labels=list(labels))
    queries = segmenter.model.transformer_module.decoder.layernorm(outputs.transformer_decoder_last_hidden_state)
    features = head.mask_features(map_inputs[0])
    loss: Tensor = outputs.loss
    q_f, f_mask = (x.reshape(CLIPS, CLIP, *x.shape[1:]) for x in (queries, features))
    return loss + _clip_loss(head, q_f, f_mask, clips)


def _segmenter() -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 192], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=CHANNELS, mask_feature_size=CHANNELS, hidden_dim=CHANNELS,
        num_queries=FRAME_QUERIES, encoder_feedforward_dim=128, dim_feedforward=256, encoder_layers=2, decoder_layers=4,
        num_attention_heads=8, num_labels=len(CLASSES), train_num_points=POINTS,
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(config).train()


def _head() -> VitaHead:
    head = VitaHead(SIZES)
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for name, parameter in head.named_parameters():
        if name.endswith("in_proj_bias"):
            nn.init.zeros_(parameter)
    return head


def _video(seed: int, index: int) -> tuple[list[Any], Any, Tensor]:
    """Frames, masks and classes of one video."""
    scene, frames, masks, _ = make_video(seed, 0, index)
    return frames, masks, torch.tensor([label(thing.appearance) for thing in scene.things])


def label(appearance: Appearance) -> int:
    """The class of an object."""
    return CLASSES[appearance.colour, appearance.shape]


def _clips(videos: list[tuple[list[Any], Any, Tensor]], seed: int) -> Iterator[list[Clip]]:
    """Clips of random frames, mirrored or not."""
    rng = np.random.default_rng(seed)
    geometry = vita_geometry((SHORT, LONG), SHORT, LONG)
    while True:
        clips = []
        for _ in range(CLIPS):
            frames, truth, labels = videos[rng.integers(len(videos))]
            times = np.sort(rng.choice(len(frames), CLIP, replace=False))
            flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
            images = torch.stack([geometry.image(np.ascontiguousarray(frames[t][:, flip])) for t in times])
            clips.append(Clip(images, torch.from_numpy(np.ascontiguousarray(truth[:, times][..., flip])), labels))
        yield clips


def _clip_loss(head: VitaHead, q_f: Tensor, features: Tensor, clips: list[Clip]) -> Tensor:
    """Class, BCE and Dice losses of the video queries, weights 2, 5 and 5, after one-to-one matching with the same costs."""
    queries, total, objects = head(q_f), q_f.new_zeros(()), max(1, sum(len(clip.objects()[1]) for clip in clips))
    weight = torch.tensor([1.0] * len(CLASSES) + [NO_OBJECT])
    for b, clip in enumerate(clips):
        truth, labels = clip.objects()
        classes_of_queries = torch.full((VIDEO_QUERIES,), len(CLASSES))
        embed, logits = queries.mask_embed[b], queries.logits[b]
        bce, dice = point_costs(embed.detach(), features[b].detach(), truth, POINTS)
        rows, columns = assign(5 * bce + 5 * dice - 2 * logits.detach().softmax(-1)[:, labels])
        classes_of_queries[rows] = labels[columns]
        pairs = torch.einsum("kc,thwc->kthw", embed[rows], features[b])
        bce_sum, dice_sum = pair_losses(pairs, truth, columns, POINTS)
        total = total + 2 * F.cross_entropy(logits, classes_of_queries, weight) / len(clips)
        total = total + 5 * (bce_sum + dice_sum) / objects
    return total


if __name__ == "__main__":
    run_command(vita_shapes)
