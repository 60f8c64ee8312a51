"""A small VITA for moving shapes, trained on a CPU from nothing, so that its frozen features mean something.

`python -m pipelines.vita_shapes --out out/vita_shapes`. Instance masks, tracks and classes of moving shapes are exact, so
Mask2Former's own loss on frames and VITA's on clips (Heo et al., NeurIPS 2022, section 3.3, without the similarity loss) are
trained together. Letters: B clips, T frames, A objects, K pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from pipelines.shapes_segmenter import (
    CHANNELS,
    CLASS_WEIGHT,
    CLASSES,
    FRAME_QUERIES,
    MASK_WEIGHT,
    POINTS,
    Clip,
    ShapesVideo,
    class_loss,
    draw_video,
    make_segmenter,
    matched,
)  # fmt: skip
from rvos_cache.cli import run_command
from rvos_cache.system.files import new_folder
from rvos_cache.system.progress import Progress
from rvos_cache.trackers.vita import HeadSizes, VitaHead, vita_geometry
from rvos_cache.trackers.vita.checkpoint import HEAD_FILE
from rvos_select.selectors.dmvs.masks import pair_losses, point_costs

VIDEO_QUERIES = 16
SIZES = HeadSizes(
    channels=CHANNELS, map_channels=CHANNELS, mask_channels=CHANNELS, frame_queries=FRAME_QUERIES, video_queries=VIDEO_QUERIES,
    classes=len(CLASSES), hidden=256, encoder_layers=2, decoder_layers=3,
)  # fmt: skip
SHORT, LONG = 96, 160
"""The frames' own size, so that nothing is resized."""
CLIP, CLIPS = 5, 2


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
    segmenter, head = make_segmenter(), _head()
    map_inputs: list[Tensor] = []
    segmenter.model.pixel_level_module.decoder.mask_projection.register_forward_pre_hook(
        lambda _, inputs: map_inputs.append(inputs[0])
    )
    parameters = [*segmenter.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    clips, mean = _clips([draw_video(seed, index) for index in range(videos)], seed), 0.0
    with Progress("train", steps, unit="steps") as bar:
        for step in range(steps):
            loss = _loss(segmenter, head, map_inputs, next(clips))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            mean += (loss.item() - mean) / min(step + 1, 100)
            bar.advance(title=f"VITA, loss {mean:.2f}")
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


def _head() -> VitaHead:
    head = VitaHead(SIZES)
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for name, parameter in head.named_parameters():
        if name.endswith("in_proj_bias"):
            nn.init.zeros_(parameter)
    return head


def _clips(videos: list[ShapesVideo], seed: int) -> Iterator[list[Clip]]:
    """Clips of random frames, mirrored or not."""
    rng = np.random.default_rng(seed)
    geometry = vita_geometry((SHORT, LONG), SHORT, LONG)
    while True:
        clips = []
        for _ in range(CLIPS):
            video = videos[rng.integers(len(videos))]
            times = np.sort(rng.choice(len(video.frames), CLIP, replace=False))
            flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
            images = torch.stack([geometry.image(np.ascontiguousarray(video.frames[t][:, flip])) for t in times])
            masks = torch.from_numpy(np.ascontiguousarray(video.masks[:, times][..., flip]))
            clips.append(Clip(images, masks, video.labels))
        yield clips


def _clip_loss(head: VitaHead, q_f: Tensor, features: Tensor, clips: list[Clip]) -> Tensor:
    """Class, BCE and Dice losses of the video queries, weights 2, 5 and 5, after one-to-one matching with the same costs."""
    queries, total, objects = head(q_f), q_f.new_zeros(()), max(1, sum(len(clip.objects()[1]) for clip in clips))
    for b, clip in enumerate(clips):
        truth, labels = clip.objects()
        embed, logits = queries.mask_embed[b], queries.logits[b]
        bce, dice = point_costs(embed.detach(), features[b].detach(), truth, POINTS)
        rows, columns = matched(logits.detach(), labels, bce, dice)
        pairs = torch.einsum("kc,thwc->kthw", embed[rows], features[b])
        bce_sum, dice_sum = pair_losses(pairs, truth, columns.tolist(), POINTS)
        total = total + CLASS_WEIGHT * class_loss(logits, rows, labels[columns]) / len(clips)
        total = total + MASK_WEIGHT * (bce_sum + dice_sum) / objects
    return total


if __name__ == "__main__":
    run_command(vita_shapes)
