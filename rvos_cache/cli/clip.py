"""Command that makes what the text encoder `clip`, `pool-clip` and the selector `ssa` read: convert-clip."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.options import PATH


@click.command("convert-clip")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="Folder to write; must not exist.")
@click.option(
    "--tokenizer",
    metavar="FILE|FOLDER|HUB",
    help="open_clip's bpe_simple_vocab_16e6.txt.gz (in the wheel of open_clip_torch), or the folder or hub name of a CLIP.  "
    "[default: openai/clip-vit-large-patch14]",
)
def convert_clip(checkpoint: Path, out: Path, tokenizer: str | None) -> None:
    """Convert a ConvNeXt CLIP. From open_clip's file, or from one of SSA, to the folder that --set checkpoint=... takes."""
    from rvos_cache.clip.cleaning import MISSING_FTFY, has_ftfy
    from rvos_cache.clip.convert import convert_clip as step
    from rvos_cache.clip.vocabulary import DEFAULT

    if not has_ftfy():
        click.echo(MISSING_FTFY)
    result = step(checkpoint, out, tokenizer or DEFAULT)
    widths, depths = ("/".join(map(str, numbers)) for numbers in (result.widths, result.depths))
    click.echo(
        f"{out}: ConvNeXt of widths {widths} and depths {depths}, text tower of {result.layers} layers, projection "
        f"{result.projection}, {result.tensors} tensors used"
    )
    if result.unread:
        click.echo(f"not read: {len(result.unread)} tensors that are no part of CLIP (conversion.json lists them)")
    if not result.has_head:
        click.echo(
            "missing: the image head and logit_scale; this CLIP cannot compare an image with a sentence (--selector clip-zero-shot), "
            "but serves --encoder clip, pool-clip and --selector ssa"
        )


COMMANDS: tuple[click.Command, ...] = (convert_clip,)
