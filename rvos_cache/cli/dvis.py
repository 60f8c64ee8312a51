"""Commands that write the files that the tracker `dvis` reads: convert-dvis, replace-refiner."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.options import PATH
from rvos_cache.system.counts import counted


@click.command("convert-dvis")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; it must not exist.")
def convert_dvis(checkpoint: Path, out: Path) -> None:
    """Convert a released DVIS++ checkpoint of the offline model. From detectron2's .pth to the folder that --set checkpoint=...
    takes."""
    from rvos_cache.trackers.dvis.convert import convert_dvis as step

    converted = step(checkpoint, out)
    click.echo(
        f"{out}: {converted.backbone}, {converted.queries} queries, {converted.channels} channels, {converted.classes} classes, "
        f"{converted.tensors} tensors used"
    )
    for name in converted.unread:
        click.echo(f"not read by the offline model: {name}")


@click.command("replace-refiner")
@click.argument("dvis")
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; it must not exist.")
def replace_refiner(dvis: str, run: Path, out: Path) -> None:
    """Copy a DVIS++ folder, with the temporal refiner of a run of pipelines.dervos_refiner. Its digest is another, so caches are
    extracted again."""
    from rvos_cache.tuning.replace_refiner import replace_refiner as step

    result = step(dvis, run, out)
    for name in result.replaced:
        click.echo(f"replaced: {name}")
    for name in result.same:
        click.echo(f"as before: {name}")
    steps = counted(result.step, "step")
    click.echo(
        f"{out}: {len(result.replaced)} tensors of the refiner replaced, {len(result.same)} as before, after {steps}; "
        f"digest of the head {result.before} before, {result.after} now; extract with --tracker dvis --set checkpoint={out}"
    )


COMMANDS: tuple[click.Command, ...] = (convert_dvis, replace_refiner)
