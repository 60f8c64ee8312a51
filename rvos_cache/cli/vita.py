"""Commands that write the files that the tracker `vita` reads: convert-vita, fit-vita-basis."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from rvos_cache.cli.options import DATASET, PATH, ROOT, SET, SPLIT
from rvos_cache.errors import InputError
from rvos_cache.system.progress import tracked


@click.command("convert-vita")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; it must not exist.")
def convert_vita(checkpoint: Path, out: Path) -> None:
    """Convert a released VITA checkpoint. From detectron2's .pth to the folder that --set checkpoint=... takes."""
    from rvos_cache.trackers.vita.convert import convert_vita as step

    converted = step(checkpoint, out)
    sizes = converted.sizes
    click.echo(
        f"{out}: {converted.backbone}, {sizes.frame_queries} frame queries, {sizes.video_queries} video queries, "
        f"{sizes.classes} classes, {converted.tensors} tensors used"
    )
    for name in converted.unread:
        click.echo(f"not read in evaluation: {name}")


@click.command("fit-vita-basis")
@DATASET
@ROOT
@SPLIT
@SET
@click.option("--videos", type=click.IntRange(1), default=50, show_default=True, help="Number of videos to fit on.")
@click.option("--check", type=click.IntRange(1), default=5, show_default=True, help="Number of videos after those to measure on.")
@click.option("--rank", type=click.IntRange(1), default=64, show_default=True, help="Numbers that are stored of each cell.")
@click.option("--out", type=PATH, required=True, help="Basis to write (.safetensors).")
def fit_vita_basis(
    dataset: str, root: Path, split: str, overrides: tuple[str, ...], videos: int, check: int, rank: int, out: Path
) -> None:
    """Fit the basis of profile=low_rank. It stores fewer numbers per cell that give nearly the same masks."""
    from rvos_cache.datasets import open_dataset
    from rvos_cache.settings import build, parse_overrides
    from rvos_cache.trackers.vita import VitaSettings, VitaTracker
    from rvos_cache.trackers.vita.fit import agreement, fit_on_videos

    if out.exists():
        raise InputError(f"{out}: exists already, and caches may have been made with it; choose another path")
    source = open_dataset(dataset, root, split)
    tracker = VitaTracker(build(VitaSettings, parse_overrides(overrides), "tracker vita"))
    video_ids = iter(source.video_ids())
    fitted, others = list(islice(video_ids, videos)), list(islice(video_ids, check))
    basis = fit_on_videos(tracker, map(source.video, tracked(fitted, "fit")), rank)
    basis.save(out)
    if not others:
        click.echo(f"{out}: rank {rank}; not measured, the split has no video beyond the first {videos}")
        return
    agreed = agreement(tracker, basis, map(source.video, tracked(others, "measure")))
    click.echo(f"{out}: rank {rank}; mean IoU with the exact masks {agreed:.4f} on {len(others)} other videos (expected: 0.99)")


COMMANDS: tuple[click.Command, ...] = (convert_vita, fit_vita_basis)
