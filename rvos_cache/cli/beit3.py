"""Command that makes what the text encoder `beit3` and the selector `dervos` read: convert-beit3."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.options import PATH


@click.command("convert-beit3")
@click.argument("checkpoint", type=PATH)
@click.argument("spm", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; must not exist.")
def convert_beit3(checkpoint: Path, spm: Path, out: Path) -> None:
    """Convert a released BEiT-3. From its .pth and its beit3.spm to the folder that --set checkpoint=... takes."""
    from rvos_cache.text.beit3.convert import convert_beit3 as step

    converted = step(checkpoint, spm, out)
    sizes = converted.sizes
    click.echo(
        f"{out}: BEiT-3 of width {sizes.width} and {sizes.layers} layers, positions of {sizes.grid}x{sizes.grid} patches, "
        f"{converted.tokens} tokens, {converted.tensors} tensors used"
    )
    for name in converted.unread:
        click.echo(f"not read by the encoder: {name}")


COMMANDS: tuple[click.Command, ...] = (convert_beit3,)
