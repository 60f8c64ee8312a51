"""Commands that make what the tracker `vita` reads: convert-vita, fit-vita-basis."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from rvos_cache.cli.options import DATASET, PATH, ROOT, SET, SPLIT
from rvos_cache.errors import InputError


@click.command("convert-vita")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; must not be there.")
def convert_vita(checkpoint: Path, out: Path) -> None:
    """A released VITA checkpoint (.pth, detectron2's format) as the folder that --set checkpoint=... takes."""
    from rvos_cache.trackers.vita.convert import convert_vita as step

    found = step(checkpoint, out)
    sizes = found.sizes
    click.echo(
        f"{out}: {found.backbone}, {sizes.frame_queries} frame queries, {sizes.video_queries} video queries, "
        f"{sizes.classes} classes, {found.tensors} tensors used"
    )
    for name in found.unread:
        click.echo(f"not read in evaluation: {name}")


@click.command("fit-vita-basis")
@DATASET
@ROOT
@SPLIT
@SET
@click.option("--videos", type=click.IntRange(1), default=50, show_default=True, help="Videos to fit on, from the first.")
@click.option("--check", type=click.IntRange(1), default=5, show_default=True, help="Videos after those to measure on.")
@click.option("--rank", type=click.IntRange(1), default=64, show_default=True, help="Numbers kept of each cell.")
@click.option("--out", type=PATH, required=True, help="The basis to write (.safetensors).")
def fit_vita_basis(
    dataset: str, root: Path, split: str, overrides: tuple[str, ...], videos: int, check: int, rank: int, out: Path
) -> None:
    """The basis of profile=low_rank: fewer numbers per cell that say nearly the same masks."""
    from rvos_cache.datasets import open_dataset
    from rvos_cache.settings import build, parse_overrides
    from rvos_cache.trackers.vita import VitaSettings, VitaTracker
    from rvos_cache.trackers.vita.fit import agreement, fit_on_videos

    if out.exists():
        raise InputError(f"{out}: is there already; a cache made with it would no longer say what it holds; choose another path")
    source = open_dataset(dataset, root, split)
    tracker = VitaTracker(build(VitaSettings, parse_overrides(overrides), "tracker vita"))
    listed = iter(source.video_ids())
    basis = fit_on_videos(tracker, (source.video(v) for v in islice(listed, videos)), rank)
    held_out = list(islice(listed, check))
    basis.save(out)
    if not held_out:
        click.echo(f"{out}: rank {rank}; not measured, the split has no video beyond the first {videos}")
        return
    found = agreement(tracker, basis, map(source.video, held_out))
    click.echo(f"{out}: rank {rank}; mean IoU with the exact masks {found:.4f} on {len(held_out)} other videos (wanted: 0.99)")


COMMANDS: tuple[click.Command, ...] = (convert_vita, fit_vita_basis)
