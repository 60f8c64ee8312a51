"""A small VITA for moving shapes, trained on a CPU from nothing, so that its frozen features mean something.

`python -m pipelines.vita_shapes --out out/vita_shapes`. Instance masks and tracks of moving shapes are exact, so Mask2Former's
own loss on frames and VITA's on clips (Heo et al., NeurIPS 2022, section 3.3, without the similarity loss) are trained together.
Letters: B clips, T frames, A objects, K pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.cli import run_command
from rvos_cache.shapes import make_video
from rvos_cache.trackers.vita import FrameGeometry, HeadSizes, VitaHead
from rvos_cache.trackers.vita.segmenter import HEAD_FILE
from rvos_select.matching import assign
from rvos_select.progress import EpochBar
from rvos_select.selectors.dmvs_masks import pair_losses, point_costs

CHANNELS, FRAME_QUERIES, VIDEO_QUERIES = 64, 16, 16
SIZES = HeadSizes(
    channels=CHANNELS, map_channels=CHANNELS, mask_channels=CHANNELS, frame_queries=FRAME_QUERIES, video_queries=VIDEO_QUERIES,
    classes=1, hidden=256, encoder_layers=2, decoder_layers=3,
)  # fmt: skip
SHORT, LONG = 96, 160
"""The frames' own size, so that nothing is resized."""
POINTS, NO_OBJECT = 1024, 0.1
CLIP, CLIPS = 5, 2


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/vita_shapes"), show_default=True)
@click.option("--videos", default=240, show_default=True)
@click.option("--steps", default=2500, show_default=True)
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
    kept: list[Tensor] = []
    segmenter.model.pixel_level_module.decoder.mask_projection.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    parameters = [*segmenter.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    held = [make_video(seed, 0, index)[1:3] for index in range(videos)]
    clips, mean = _clips(held, seed), 0.0
    with EpochBar(steps, 0) as bar:
        for step in range(steps):
            images, masks = next(clips)
            loss = _loss(segmenter, head, kept, images, masks)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            mean += (loss.item() - mean) / min(step + 1, 100)
            bar.advance(f"loss {mean:.2f}")
    out.mkdir(parents=True, exist_ok=True)
    segmenter.save_pretrained(out)
    save_file(head.official(), out / HEAD_FILE, {"format": "pt"})
    return out


def _loss(segmenter: Any, head: VitaHead, kept: list[Tensor], images: Tensor, masks: list[Tensor]) -> Tensor:
    """Mask2Former's loss of the frames and VITA's of the clips. kept: what Mask2Former's mask projection was given."""
    kept.clear()
    seen = [m[m.flatten(1).any(1)].float() for clip in masks for m in clip.transpose(0, 1)]
    classes = [torch.zeros(len(m), dtype=torch.long) for m in seen]
    found = segmenter(images.flatten(0, 1), mask_labels=seen, class_labels=classes)
    queries = segmenter.model.transformer_module.decoder.layernorm(found.transformer_decoder_last_hidden_state)
    features = head.mask_features(kept[0])
    loss: Tensor = found.loss
    q_f, f_mask = (x.reshape(CLIPS, CLIP, *x.shape[1:]) for x in (queries, features))
    return loss + _clip_loss(head, q_f, f_mask, masks)


def _segmenter() -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 192], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=CHANNELS, mask_feature_size=CHANNELS, hidden_dim=CHANNELS,
        num_queries=FRAME_QUERIES, encoder_feedforward_dim=128, dim_feedforward=256, encoder_layers=2, decoder_layers=4,
        num_attention_heads=8, num_labels=1, train_num_points=POINTS,
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


def _clips(held: list[tuple[list[Any], Any]], seed: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Images (B, T, 3, height, width) and for each clip bool (A, T, height, width), mirrored or not."""
    rng = np.random.default_rng(seed)
    geometry = FrameGeometry.of((SHORT, LONG), SHORT, LONG)
    while True:
        images, masks = [], []
        for _ in range(CLIPS):
            frames, truth = held[rng.integers(len(held))]
            times = np.sort(rng.choice(len(frames), CLIP, replace=False))
            flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
            images.append(torch.stack([geometry.image(np.ascontiguousarray(frames[t][:, flip])) for t in times]))
            masks.append(torch.from_numpy(np.ascontiguousarray(truth[:, times][..., flip])))
        yield torch.stack(images), masks


def _clip_loss(head: VitaHead, q_f: Tensor, features: Tensor, masks: list[Tensor]) -> Tensor:
    """Class, BCE and Dice losses of the video queries, weights 2, 5 and 5, after one-to-one matching with the same costs."""
    found, total, objects = head(q_f), q_f.new_zeros(()), max(1, sum(len(m) for m in masks))
    for b, clip in enumerate(masks):
        truth = clip[clip.flatten(1).any(1)].float()
        labels = torch.ones(VIDEO_QUERIES, dtype=torch.long)
        embed, logits = found.mask_embed[b], found.logits[b]
        bce, dice = point_costs(embed.detach(), features[b].detach(), truth, POINTS)
        rows, columns = assign(5 * bce + 5 * dice - 2 * logits.detach().softmax(-1)[:, :1])
        labels[rows] = 0
        pairs = torch.einsum("kc,thwc->kthw", embed[rows], features[b])
        bce_sum, dice_sum = pair_losses(pairs, truth, columns, POINTS)
        total = total + 2 * F.cross_entropy(logits, labels, torch.tensor([1.0, NO_OBJECT])) / len(masks)
        total = total + 5 * (bce_sum + dice_sum) / objects
    return total


if __name__ == "__main__":
    run_command(vita_shapes)
