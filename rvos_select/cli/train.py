"""`rvos-select train`, `import-sola`, `import-ssa` and `import-referdino`: commands that write a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rvos_cache.cli import Resumable
from rvos_cache.cli.options import DEVICE
from rvos_cache.errors import InputError
from rvos_select.cli.options import CACHES, PATH, TEXTS

INDEX = "relative_position_index"
"""Of Swin, which follows from the size of a window."""


@click.command(cls=Resumable, option="--resume")
@CACHES
@TEXTS
@click.option("--valid-cache", "valid_caches", type=PATH, multiple=True, help="Validation tracks; may repeat.")
@click.option("--valid-text", "valid_texts", type=PATH, multiple=True, help="Validation words; may repeat.")
@click.option(
    "--selector", help="sola, dmvs, ssa, referdino, dervos, mean-cosine, or your own package.module:Class.  [default: sola]"
)
@click.option("--config", type=PATH, help="TOML file with settings.")
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="One setting, e.g. optim.lr=1e-4; may repeat.")
@click.option("--out", type=PATH, help="The run's folder.  [default: out/runs/<selector>]")
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@DEVICE
def train(
    caches: tuple[Path, ...],
    texts: tuple[Path, ...],
    valid_caches: tuple[Path, ...],
    valid_texts: tuple[Path, ...],
    selector: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: bool,
) -> None:
    """Train a selection module from caches."""
    from rvos_cache.settings import build, merge, parse_overrides, read_toml
    from rvos_select.training.settings import TrainSettings
    from rvos_select.training.train import train as step

    values: dict[str, Any] = merge(read_toml(config) if config else {}, parse_overrides(overrides))
    given = parse_overrides(overrides).get("selector", selector)
    if selector:
        if given != selector:
            raise click.UsageError(f"--selector {selector} and --set selector={given}: give one of them")
        values["selector"] = selector
    settings = build(TrainSettings, values, str(config) if config else "train settings", overrides if config else ())
    run = step(caches, texts, valid_tracks=valid_caches, valid_texts=valid_texts, settings=settings, out=out, resume=resume)
    click.echo(f"run: {run}")


@click.command("import-sola")
@click.argument("checkpoint", type=PATH, metavar="CHECKPOINT.pth")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--cache", "caches", type=PATH, multiple=True, help="Tracks it was trained on, if not SOLA's; may repeat.")
@click.option("--text", "texts", type=PATH, multiple=True, help="Words it was trained on.  [default: SOLA's RoBERTa]")
def import_sola(checkpoint: Path, out: Path, caches: tuple[Path, ...], texts: tuple[Path, ...]) -> None:
    """Convert a checkpoint of SOLA's released train.py to a run; only tensors are read from it."""
    from rvos_select.exchange.import_sola import import_sola as step

    click.echo(f"run: {step(checkpoint, out, list(caches), list(texts))}")


@click.command("import-ssa")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--clip", type=PATH, help="A folder of convert-clip with the same CLIP.  [default: convert the checkpoint's own]")
@click.option("--tokenizer", help="Vocabulary of the CLIP to convert, as rvos-cache convert-clip takes it.")
@click.option("--dataset", default="mevis", show_default=True, help="What it was trained on, which the file does not say.")
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="A setting of SSA, e.g. short_side=480; may repeat.")
def import_ssa(
    checkpoint: Path, out: Path, clip: Path | None, tokenizer: str | None, dataset: str, overrides: tuple[str, ...]
) -> None:
    """Convert a released checkpoint of SSA to a run; only tensors are read from it."""
    from rvos_cache.clip.vocabulary import DEFAULT
    from rvos_cache.settings import parse_overrides
    from rvos_select.exchange.import_ssa import import_ssa as step

    if clip is not None and tokenizer is not None:
        raise click.UsageError("--clip has a vocabulary of its own; leave --tokenizer out")
    if clip is not None and not clip.is_dir():
        raise InputError(f"{clip}: there is no such folder; give one that rvos-cache convert-clip wrote: --clip CLIP")
    imported = step(checkpoint, out, clip, tokenizer or DEFAULT, dataset=dataset, config=parse_overrides(overrides))
    click.echo(f"run: {imported.run}; {imported.trained} tensors are SSA's, {imported.clip} CLIP's")
    for name in imported.unread:
        click.echo(f"not read: {name}")


@click.command("import-referdino")
@click.argument("checkpoint", type=PATH)
@click.option(
    "--grounding", metavar="NAME", help="For a released file: the GroundingDINO it was trained from, a hub name or a folder."
)
@click.option("--out", type=PATH, required=True, help="The run's folder.")
def import_referdino(checkpoint: Path, grounding: str | None, out: Path) -> None:
    """Convert a released checkpoint of ReferDINO, or a folder of tune-referdino, to a run. RUN/upstream is for --tracker gdino-queries
    --set checkpoint=...; only tensors are read from the file."""
    from rvos_select.exchange.import_referdino import import_referdino as step

    imported = step(checkpoint, grounding, out)
    conversion = imported.conversion
    if conversion is None:
        steps = "" if imported.steps is None else f"tuned to step {imported.steps[0]} of {imported.steps[1]}; "
        click.echo(
            f"run: {imported.run}; {steps}for stage one: {imported.run / 'upstream'}; selector: {imported.trained:,} parameters"
        )
        return
    parts = ", ".join(f"{count} {name}" for name, count in conversion.tensors.items())
    click.echo(
        f"run: {imported.run}; {sum(conversion.tensors.values())} tensors: {parts}; {conversion.copies} of them are copies"
    )
    click.echo(f"for stage one: {conversion.folder}; selector: {imported.trained:,} parameters")
    if conversion.untrained:
        click.echo(
            f"not read: {conversion.untrained} tensors of the enhancer, which was never trained: the checkpoint is of single frames "
            "(temporal_layers is 0; extract with --set resizing=image)"
        )
    if conversion.unread:
        kinds = dict.fromkeys(INDEX if name.endswith(INDEX) else ".".join(name.split(".")[:2]) for name in conversion.unread)
        click.echo(
            f"not read: {len(conversion.unread)} tensors that GroundingDINO computes itself or has no use for ({', '.join(kinds)})"
        )


COMMANDS = (train, import_sola, import_ssa, import_referdino)
