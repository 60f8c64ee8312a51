"""Commands that write a dataset, or a cache from another cache: shapes, convert, mirror."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.options import JOBS, OUT, PATH
from rvos_cache.cli.run import Resumable, print_reports
from rvos_cache.system.progress import Progress


@click.command()
@click.option("--out", type=PATH, required=True, help="Folder to write, in the layout of MeViS.")
@click.option(
    "--videos",
    type=click.IntRange(2),
    required=True,
    help="Number of videos; one fifth of them is the split valid_u, the rest train.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random generator.")
@JOBS
def shapes(out: Path, videos: int, seed: int, jobs: int) -> None:
    """Write the moving-shapes dataset. Synthetic videos with sentences and ground truth; read them with --dataset mevis."""
    from rvos_cache.shapes import write_shapes

    with Progress("shapes", videos) as bar:
        write_shapes(out, videos, seed, progress=lambda done, total: bar.advance(), jobs=jobs)
    click.echo(f"{videos} videos: {out}")


@click.group()
def convert() -> None:
    """Write a dataset from its published files."""


@convert.command("ref-davis")
@click.option("--davis", type=PATH, required=True, help="Folder or zip of DAVIS-2017-Unsupervised-trainval-480p.")
@click.option("--text", type=PATH, required=True, help="Folder or zip of the four Davis17_annot*.txt.")
@click.option("--out", type=PATH, required=True, help="Folder to write; it must not exist.")
def convert_ref_davis(davis: Path, text: Path, out: Path) -> None:
    """Write Ref-DAVIS17 in ReferFormer's layout. Files are copied; read them with --dataset ref-davis17."""
    from rvos_cache.datasets.convert_ref_davis import convert_ref_davis as step

    counts = step(davis, text, out)
    for split, (videos, frames, expressions) in counts.items():
        click.echo(f"{split}: {videos} videos, {frames} frames, {expressions} expressions: {out}")


@click.command(cls=Resumable)
@click.argument("cache", type=PATH)
@OUT
@JOBS
def mirror(cache: Path, out: Path, jobs: int) -> None:
    """Write the flipped tracks of a cache. They are the tracks of SPLIT-mirror, the split flipped from left to right, for more
    training data without tracking again."""
    from rvos_cache.exchange.mirror import mirror as step

    print_reports({str(out): step(cache, out, jobs)})


@click.command()
@click.argument("cache", type=PATH)
@click.option("--root", type=PATH, help="The dataset's folder.  [default: the root in the cache's card]")
@OUT
@JOBS
def relabel(cache: Path, root: Path | None, out: Path, jobs: int) -> None:
    """Write the tracks of a cache with the sentences and masks that the dataset has now. After a correction of the dataset this
    saves tracking again. Run it again to resume."""
    from rvos_cache.exchange.relabel import relabel as step

    print_reports({str(out): step(cache, out, root, jobs)})


COMMANDS: tuple[click.Command, ...] = (shapes, convert, mirror, relabel)
