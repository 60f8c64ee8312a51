"""Commands that make a dataset or a cache from another: shapes, convert, mirror."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rvos_cache.cli.options import JOBS, OUT, PATH
from rvos_cache.cli.run import told


@click.command()
@click.option("--out", type=PATH, required=True, help="Folder to write, in MeViS's layout.")
@click.option("--videos", type=click.IntRange(2), required=True, help="Videos in all; one fifth of them is valid_u.")
@click.option("--seed", type=int, default=0, show_default=True)
@JOBS
def shapes(out: Path, videos: int, seed: int, jobs: int) -> None:
    """Make the moving-shapes dataset."""
    from rvos_cache.shapes import write_shapes

    with click.progressbar(length=videos, label="shapes", file=sys.stderr) as bar:
        write_shapes(out, videos, seed, progress=lambda done, total: bar.update(1), jobs=jobs)
    click.echo(f"{videos} videos: {out}")


@click.group()
def convert() -> None:
    """Write a dataset from its published parts in the layout that is read here."""


@convert.command("ref-davis")
@click.option("--davis", type=PATH, required=True, help="DAVIS-2017-Unsupervised-trainval-480p: its folder or zip.")
@click.option("--text", type=PATH, required=True, help="Folder or zip of the four Davis17_annot*.txt.")
@click.option("--out", type=PATH, required=True, help="Folder to write; must not be there.")
def convert_ref_davis(davis: Path, text: Path, out: Path) -> None:
    """Ref-DAVIS17 in ReferFormer's layout; files are copied."""
    from rvos_cache.datasets.convert_ref_davis import convert_ref_davis as step

    with click.progressbar(length=1, label="ref-davis", file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(1)

        counts = step(davis, text, out, progress)
    for split, (videos, frames, expressions) in counts.items():
        click.echo(f"{split}: {videos} videos, {frames} frames, {expressions} expressions: {out}")


@click.command()
@click.argument("cache", type=PATH)
@OUT
@JOBS
def mirror(cache: Path, out: Path, jobs: int) -> None:
    """The tracks of a split seen in a mirror, from its cache and without tracking again: more to train on."""
    from rvos_cache.exchange.mirror import mirror as step

    told({str(out): step(cache, out, jobs)})


COMMANDS: tuple[click.Command, ...] = (shapes, convert, mirror)
