"""Commands that write a dataset, or a cache from another cache: shapes, convert, mirror, relabel, pool-clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rvos_cache.cli.options import BUDGET, DEVICE, JOBS, OUT, PATH, SHARD
from rvos_cache.cli.run import Resumable, print_reports
from rvos_cache.system.counts import counted
from rvos_cache.system.progress import Progress

if TYPE_CHECKING:
    from rvos_cache.exchange.pool_clip import PooledBytes


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
    click.echo(f"{counted(videos, 'video')}: {out}")


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
        click.echo(f"{split}: {counted(videos, 'video')}, {frames} frames, {counted(expressions, 'expression')}: {out}")


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


@click.command("pool-clip", cls=Resumable)
@click.argument("cache", type=PATH)
@click.option("--out", type=PATH, help="Cache to write (.zarr).  [default: <cache>-clip.zarr beside it]")
@click.option("--root", type=PATH, help="The dataset's folder.  [default: the root in the cache's card]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="K=V",
    help="One setting; may repeat. `rvos-cache settings pool-clip` lists them.",
)
@SHARD
@JOBS
@BUDGET
@click.option("--plan", is_flag=True, help="Print the bytes of the pooled cache and stop.")
@DEVICE
def pool_clip(
    cache: Path,
    out: Path | None,
    root: Path | None,
    overrides: tuple[str, ...],
    shard: str,
    jobs: int,
    budget: int | None,
    plan: bool,
) -> None:
    """Add features of a frozen CLIP to the tracks of a cache. They are the means of CLIP's maps under each track's mask, in a copy of
    the cache. Give the CLIP: --set checkpoint=FOLDER. Run it again to resume."""
    from rvos_cache.exchange import pool_clip as pooling
    from rvos_cache.settings import parse_overrides
    from rvos_cache.store import pooled_path

    values = parse_overrides(overrides)
    if plan:
        _print_pooled_bytes(pooling.pooled_bytes(pooling.open_unpooled(cache), pooling.open_pooling(values)), budget)
        return
    target = str(out or pooled_path(cache))
    print_reports({target: pooling.pool_clip(cache, target, overrides=values, root=root, shard=shard, jobs=jobs, budget=budget)})


def _print_pooled_bytes(planned: PooledBytes, budget: int | None) -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("array", "on disk")
    for name, size in {**planned.arrays, "total": planned.total}.items():
        table.add_row(name, decimal(size, precision=2))
    Console().print(table)
    click.echo(f"{counted(planned.videos, 'video')}, {planned.frames} frames, {planned.tracks} tracks")
    if budget is not None:
        planned.check(budget)


COMMANDS: tuple[click.Command, ...] = (shapes, convert, mirror, relabel, pool_clip)
