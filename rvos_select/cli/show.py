"""`rvos-select report` and `ask`: commands that show results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rvos_cache.cli import Resumable
from rvos_cache.cli.options import DEVICE
from rvos_select.cli.options import PATH, ROOT, SELECTOR, SELECTOR_SET, check_run_or_selector, policy_options

if TYPE_CHECKING:
    from rvos_select.merging.policy import PolicyOptions


@click.command()
@click.option("--run", type=PATH, required=True, help="Folder of a training run.")
@click.option("--selections", type=PATH, help="Selections that this run predicted.  [default: the training alone]")
@click.option("--cache", "caches", type=PATH, multiple=True, help="Tracks cache of the selections; may repeat.")
@ROOT
@click.option(
    "--row", "rows", multiple=True, metavar="NAME=JSON", help="A row of the table: scores that evaluate --json wrote; may repeat."
)
@click.option("--out", type=PATH, required=True, help="Folder of the page.")
def report(
    run: Path, selections: Path | None, caches: tuple[Path, ...], root: Path | None, rows: tuple[str, ...], out: Path
) -> None:
    """Write a page with curves, scores and pictures; a browser opens it from disk."""
    if (selections is None) != (not caches):
        raise click.UsageError("give --selections and --cache together")
    named = {name: path for name, _, path in (row.partition("=") for row in rows)}
    if not all((*named, *named.values())) or len(named) < len(rows) or (named and selections is None):
        raise click.UsageError("--row wants NAME=JSON, each name once, together with --selections")
    from rvos_select.reporting import report as step

    click.echo(f"page: {step(run, selections, list(caches), out, root=root, more_rows=named)}")


@click.command(cls=Resumable)
@click.argument("video", type=PATH)
@click.argument("sentence")
@click.option("--run", type=PATH, help="Folder of a training run.")
@SELECTOR
@SELECTOR_SET
@click.option("--tracker", help="With --selector: the tracker.  [default: flow]")
@click.option("--tracker-set", multiple=True, metavar="K=V", help="With --selector: one setting of the tracker; may repeat.")
@click.option("--clip-set", multiple=True, metavar="K=V", help="With --selector: one setting of pool-clip; may repeat.")
@click.option("--out", type=PATH, required=True, help="Folder for masks/ and overlay.mp4; see answers.json there.")
@policy_options()
@DEVICE
def ask(
    video: Path,
    sentence: str,
    run: Path | None,
    selector: str | None,
    overrides: tuple[str, ...],
    tracker: str | None,
    tracker_set: tuple[str, ...],
    clip_set: tuple[str, ...],
    out: Path,
    policy: PolicyOptions,
) -> None:
    """Segment the objects that SENTENCE names in VIDEO, a film or a folder of frames. Give --run, or --selector of one that needs no
    training, with a tracker.

    Another sentence about the same video may have the same --out: it gets masks and an overlay of its own.
    """
    from rvos_cache.settings import parse_overrides
    from rvos_select.inference import ask as step
    from rvos_select.runs.checkpoint import origin_of

    check_run_or_selector(run, selector, overrides)
    if run is not None:
        if tracker or tracker_set or clip_set:
            raise click.UsageError(
                "--tracker, --tracker-set and --clip-set are for --selector; a run has the tracker of its training"
            )
        click.echo(f"{run}: {origin_of(run)}")
        answer = step.ask(video, sentence, run, out, policy)
    else:
        config, tracker_settings, clip_settings = map(parse_overrides, (overrides, tracker_set, clip_set))
        answer = step.ask_untrained(
            video, sentence, str(selector), out, policy, tracker=tracker or "flow", config=config, tracker_settings=tracker_settings,
            clip_settings=clip_settings,
        )  # fmt: skip
    click.echo(f"{answer.selected} of {answer.tracks} candidates selected; best score {answer.best_score:.2f}")
    if answer.hint:
        click.echo(answer.hint)
    click.echo(f"masks: {answer.masks}\noverlay: {answer.overlay}")


COMMANDS = (report, ask)
