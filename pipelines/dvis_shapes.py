"""A small DVIS++ for moving shapes, trained on a CPU from nothing, so that its frozen tracks mean something.

`python -m pipelines.dvis_shapes --out out/dvis_shapes`. As in the paper (Zhang et al., "DVIS++", 2023, section 3) the parts are
trained one after the other: first Mask2Former on single frames (`pipelines.dvis_segmenter`); then, on its frozen output, what makes
tracks of its queries (`pipelines.dvis_head`). Instance masks, tracks and classes of moving shapes are exact.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.dvis_head import segment_video, train_head
from pipelines.dvis_segmenter import train_segmenter
from pipelines.shapes_segmenter import draw_video
from rvos_cache.cli import run_command
from rvos_cache.system.device import on_device
from rvos_cache.system.files import new_folder
from rvos_cache.trackers.dvis.checkpoint import HEAD_FILE
from rvos_cache.trackers.mask2former.segmenter import Segmenter


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dvis_shapes"), show_default=True)
@click.option("--videos", default=500, show_default=True, help="Of the segmenter.")
@click.option("--steps", default=3000, show_default=True, help="Of the segmenter.")
@click.option("--track-videos", default=1200, show_default=True, help="Of the tracker and the refiner: others than --videos.")
@click.option("--track-steps", default=3400, show_default=True, help="Of the tracker; the refiner has 1.75 times as many.")
@click.option("--seed", default=11, show_default=True, help="Of videos and weights; other videos than the demo's.")
def dvis_shapes(out: Path, videos: int, steps: int, track_videos: int, track_steps: int, seed: int) -> None:
    """Train and write the checkpoint that `--tracker dvis --set checkpoint=OUT` takes."""
    train_dvis(out, videos, steps, track_videos, track_steps, seed)
    click.echo(f"checkpoint: {out}")


def train_dvis(out: Path, videos: int, steps: int, track_videos: int, track_steps: int, seed: int) -> Path:
    """The folder of the trained checkpoint; one that is there is left as it is, and so is its trained segmenter beside it.

    The head is trained on videos that the segmenter has not seen, as those are where it is used: on its own the segmenter misses less.
    """
    from safetensors.torch import save_file

    if (out / HEAD_FILE).exists():
        return out
    first = train_segmenter(out.with_name(f"{out.name}.segmenter"), videos, steps, seed)
    # Where there is a GPU too: all else of this training is on the CPU.
    with on_device("cpu"):
        segmenter = Segmenter(str(first), "Mask2Former checkpoint")
    unseen = range(videos, videos + track_videos)
    head = train_head(segmenter, [segment_video(segmenter, draw_video(seed, i)) for i in unseen], track_steps, seed)
    with new_folder(out) as folder:
        segmenter.model.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in head.official().items()}, folder / HEAD_FILE, {"format": "pt"})
    return out


if __name__ == "__main__":
    run_command(dvis_shapes)
