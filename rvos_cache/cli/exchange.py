"""Commands that exchange tracks with other programs: import-sola, export-sola, import-masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rvos_cache.cli.options import DATASET, JOBS, LIMIT, OUT, PATH, ROOT, SHARD, SPLIT, VIDEOS
from rvos_cache.cli.run import Resumable, print_reports

DIRECTORY = click.argument("directory", type=PATH, metavar="DIR")


@click.command("import-sola", cls=Resumable)
@DIRECTORY
@click.option(
    "--tracks",
    type=click.Choice(["grid", "gdino", "gt"]),
    default="grid",
    show_default=True,
    help="gdino: from text boxes, candidates of one expression each; gt: from ground truth, for training only. One cache each.",
)
@DATASET
@ROOT
@SPLIT
@OUT
@VIDEOS
@LIMIT
@SHARD
@JOBS
def import_sola(directory: Path, tracks: Any, dataset: str, root: Path, split: str, out: Path, **selection: Any) -> None:
    """Make a cache from SOLA's sam2_tracks. Run it again to resume.

    DIR is what SOLA's released scripts write. To train like SOLA, import gt and grid of train, and grid and gdino of valid_u;
    give two --cache and two --valid-cache.
    """
    from rvos_cache.exchange.import_sola import LABEL_IOU
    from rvos_cache.exchange.import_sola import import_sola as step

    result = step(directory, dataset, root, split, out, tracks=tracks, **selection)
    iou = result.stored_iou
    if iou is not None:
        unmatched = f"; {iou.unmatched} values are of objects that the split does not annotate" if iou.unmatched else ""
        click.echo(
            f"stored IoU of {iou.pairs} pairs of track and object: {iou.mean:.4f} from the counted one on average, "
            f"{iou.largest:.4f} at most; {iou.crossed} labels at {LABEL_IOU} differ{unmatched}",
            err=True,
        )
    print_reports({str(out): result.report})


@click.command("export-sola")
@click.argument("cache", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write sam2_tracks into.")
def export_sola(cache: Path, out: Path) -> None:
    """Write tracks as sam2_tracks, for SOLA's code."""
    from rvos_cache.exchange.export_sola import export_sola as step

    for folder in step(cache, out):
        click.echo(f"tracks: {folder}")


@click.command("import-masks", cls=Resumable)
@DIRECTORY
@DATASET
@ROOT
@SPLIT
@OUT
@VIDEOS
@LIMIT
@SHARD
@JOBS
def import_masks(directory: Path, dataset: str, root: Path, split: str, out: Path, **selection: Any) -> None:
    """Make a cache from any tracker's masks. Run it again to resume.

    Tokens are the flow tracker's. DIR has for each video <video>/<track>/<frame>.png, where pixels other than 0 are the track,
    or <video>.json: {"<track>": [COCO RLE or null for each frame]}.
    """
    from rvos_cache.exchange.import_masks import import_masks as step

    print_reports({str(out): step(directory, dataset, root, split, out, **selection)})


COMMANDS: tuple[click.Command, ...] = (import_sola, export_sola, import_masks)
