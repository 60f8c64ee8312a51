"""Commands that write the files that the tracker `dvis` reads: convert-dvis."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.options import PATH


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


COMMANDS: tuple[click.Command, ...] = (convert_dvis,)
