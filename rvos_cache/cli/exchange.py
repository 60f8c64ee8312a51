"""Commands that exchange tracks with other programs: import-sola, export-sola, import-masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rvos_cache.cli.options import DATASET, JOBS, OUT, PATH, ROOT, SPLIT
from rvos_cache.cli.run import told

DIRECTORY = click.argument("directory", type=PATH, metavar="DIR")
VIDEOS = click.option("--video", "videos", multiple=True, help="Only this video; may repeat.")
LIMIT = click.option("--limit", type=click.IntRange(1), help="Only the first N videos.")
SHARD = click.option("--shard", default="1/1", show_default=True, metavar="I/N", help="Every N-th video from the I-th.")


@click.command("import-sola")
@DIRECTORY
@click.option(
    "--tracks",
    type=click.Choice(["grid", "gdino", "gt"]),
    default="grid",
    show_default=True,
    help="One cache each. gdino: boxes, candidates of their own expression alone; gt: prompted with labels, for training only.",
)
@DATASET
@ROOT
@SPLIT
@OUT
@VIDEOS
@LIMIT
@SHARD
@JOBS
def import_sola(directory: Path, tracks: Any, dataset: str, root: Path, split: str, out: Path, **chosen: Any) -> None:
    """Make a cache of the sam2_tracks that SOLA's released scripts wrote. Run it again to resume.

    To train as SOLA does, import gt and grid of train, grid and gdino of valid_u, and give two --cache and two --valid-cache.
    """
    from rvos_cache.exchange.import_sola import LABEL_IOU
    from rvos_cache.exchange.import_sola import import_sola as step

    done = step(directory, dataset, root, split, out, tracks=tracks, **chosen)
    found = done.stored_iou
    if found is not None:
        nobody = f"; {found.unmatched} values are of objects that the split does not annotate" if found.unmatched else ""
        click.echo(
            f"stored IoU of {found.pairs} pairs of track and object: {found.mean:.4f} from the counted one on average, "
            f"{found.largest:.4f} at most; {found.crossed} labels at {LABEL_IOU} differ{nobody}",
            err=True,
        )
    told({str(out): done.report})


@click.command("export-sola")
@click.argument("cache", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder for sam2_tracks.")
def export_sola(cache: Path, out: Path) -> None:
    """Write the tracks of a cache as the sam2_tracks that SOLA's released code reads."""
    from rvos_cache.exchange.export_sola import export_sola as step

    with click.progressbar(length=1, label="export", file=sys.stderr) as bar:

        def progress(total: int) -> None:
            bar.length = total
            bar.update(1)

        folders = step(cache, out, progress)
    for folder in folders:
        click.echo(f"tracks: {folder}")


@click.command("import-masks")
@DIRECTORY
@DATASET
@ROOT
@SPLIT
@OUT
@VIDEOS
@LIMIT
@SHARD
@JOBS
def import_masks(directory: Path, dataset: str, root: Path, split: str, out: Path, **chosen: Any) -> None:
    """Make a cache of any tracker's masks, with the flow tracker's tokens. Run it again to resume.

    DIR holds for each video <video>/<track>/<frame>.png, any pixel but 0 is the track, or <video>.json:
    {"<track>": [COCO RLE or null for each frame]}.
    """
    from rvos_cache.exchange.import_masks import import_masks as step

    told({str(out): step(directory, dataset, root, split, out, **chosen)})


COMMANDS: tuple[click.Command, ...] = (import_sola, export_sola, import_masks)
