"""`rvos-select report` and `ask`: commands that show results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rvos_cache.cli import Resumable
from rvos_select.cli.options import PATH, ROOT, policy_options

if TYPE_CHECKING:
    from rvos_select.merging.policy import PolicyOptions


@click.command()
@click.option("--run", type=PATH, required=True, help="Folder of a training run.")
@click.option("--selections", type=PATH, help="Selections that this run predicted.  [default: the training alone]")
@click.option("--cache", "caches", type=PATH, multiple=True, help="Tracks cache of the selections; may repeat.")
@ROOT
@click.option("--out", type=PATH, required=True, help="Folder of the page.")
def report(run: Path, selections: Path | None, caches: tuple[Path, ...], root: Path | None, out: Path) -> None:
    """Write a page with curves, scores and pictures; a browser opens it from disk."""
    if (selections is None) != (not caches):
        raise click.UsageError("give --selections and --cache together")
    from rvos_select.reporting import report as step

    click.echo(f"page: {step(run, selections, list(caches), out, root=root)}")


@click.command(cls=Resumable)
@click.argument("video", type=PATH)
@click.argument("sentence")
@click.option("--run", type=PATH, required=True, help="Folder of a training run.")
@click.option("--out", type=PATH, required=True, help="Folder for masks/ and overlay.mp4; see answers.json there.")
@policy_options()
def ask(video: Path, sentence: str, run: Path, out: Path, policy: PolicyOptions) -> None:
    """Segment the objects that SENTENCE names in VIDEO, a film or a folder of frames.

    Another sentence about the same video may have the same --out: it gets masks and an overlay of its own.
    """
    from rvos_select.inference import ask as step
    from rvos_select.runs.checkpoint import trained_on

    click.echo(f"{run}: trained on {trained_on(run)}")
    answer = step.ask(video, sentence, run, out, policy)
    click.echo(f"{answer.selected} of {answer.tracks} tracks selected; best score {answer.best_score:.2f}")
    if answer.hint:
        click.echo(answer.hint)
    click.echo(f"masks: {answer.masks}\noverlay: {answer.overlay}")


COMMANDS = (report, ask)
