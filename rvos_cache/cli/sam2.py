"""Command that makes what the SAM 2 trackers read: convert-sam2."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.options import PATH


@click.command("convert-sam2")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; must not exist.")
def convert_sam2(checkpoint: Path, out: Path) -> None:
    """Convert a checkpoint of Meta's SAM 2 (.pt) to the folder that --set checkpoint=... takes."""
    from rvos_cache.trackers.sam2.convert import convert_sam2 as convert

    result = convert(checkpoint, out)
    click.echo(f"{out}: SAM {result.version}, Hiera size {result.size}, {result.tensors} tensors used")
    for name in result.unread:
        click.echo(f"not read: {name}")


COMMANDS: tuple[click.Command, ...] = (convert_sam2,)
