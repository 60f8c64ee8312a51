"""`rvos-select predict` and `merge`: from a run to selections, from selections to masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rvos_cache.cli import Resumable
from rvos_cache.cli.options import DEVICE
from rvos_select.cli.options import CACHES, PATH, SELECTOR, SELECTOR_SET, TEXTS, check_run_or_selector, policy_options

if TYPE_CHECKING:
    from rvos_select.merging.policy import PolicyOptions


@click.command(cls=Resumable)
@click.option("--run", type=PATH, help="Folder of a training run.")
@SELECTOR
@SELECTOR_SET
@CACHES
@TEXTS
@click.option("--out", type=PATH, required=True, help="Selections to write (.zarr).")
@DEVICE
def predict(
    run: Path | None,
    selector: str | None,
    overrides: tuple[str, ...],
    caches: tuple[Path, ...],
    texts: tuple[Path, ...],
    out: Path,
) -> None:
    """Score every candidate track of every expression. Give --run, or --selector of one that needs no training."""
    from rvos_cache.settings import parse_overrides
    from rvos_cache.store import format_uri
    from rvos_select.inference.predict import predict as step

    check_run_or_selector(run, selector, overrides)
    step(run, caches, texts, out, selector=selector, config=parse_overrides(overrides))
    click.echo(f"selections: {format_uri(out)}")


@click.command(cls=Resumable)
@click.option("--selections", type=PATH, required=True)
@CACHES
@click.option("--out", type=PATH, required=True, help="Folder for <video>/<expression>/<frame>.png.")
@policy_options()
def merge(selections: Path, caches: tuple[Path, ...], out: Path, policy: PolicyOptions) -> None:
    """Merge (OR) the selected tracks of each expression and write mask PNGs."""
    from rvos_select.merging import merge as step

    step.merge(selections, list(caches), out, policy)
    click.echo(f"masks: {out}")


COMMANDS = (predict, merge)
