"""Commands that train the checkpoint that the tracker `gdino-queries` reads: tune-referdino."""

from __future__ import annotations

from pathlib import Path

import click

from rvos_cache.cli.options import DATASET, DEVICE, PATH, ROOT, SPLIT
from rvos_cache.cli.run import Resumable
from rvos_cache.system.counts import counted


@click.command("tune-referdino", cls=Resumable)
@DATASET
@ROOT
@SPLIT
@click.option("--out", type=PATH, required=True, help="Folder of the run; its folder upstream is the checkpoint.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="K=V",
    help="One setting; may repeat. `rvos-cache settings tune-referdino` lists them.",
)
@click.option("--export", is_flag=True, help="Write upstream from the state that was saved last, and train no further.")
@DEVICE
def tune_referdino(dataset: str, root: Path, split: str, out: Path, overrides: tuple[str, ...], export: bool) -> None:
    """Train ReferDINO's upstream on the videos of a split. Writes a checkpoint for the tracker gdino-queries; run it again to
    resume."""
    from rvos_cache.datasets import open_dataset
    from rvos_cache.settings import build, parse_overrides
    from rvos_cache.system.locks import folder_lock
    from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
    from rvos_cache.trackers.referdino.tune_settings import tune_settings
    from rvos_cache.trackers.referdino.upstream import read_record as read_upstream
    from rvos_cache.trackers.referdino.upstream import steps_of, tuned_settings
    from rvos_cache.tuning import export as write_upstream
    from rvos_cache.tuning import tune
    from rvos_cache.tuning.state import read_record, saved_step

    if export:
        read_record(out)
        with folder_lock(out, "tune-referdino"):
            folder = write_upstream(out)
    else:
        settings = tune_settings(parse_overrides(overrides))
        before = saved_step(out)
        folder = tune(open_dataset(dataset, root, split), settings, out)
        if before == saved_step(out):
            click.echo(f"{out}: was finished already, after {counted(before, 'step')}; a larger --set steps trains further")
    steps = steps_of(read_upstream(folder))
    if steps is not None and steps[0] < steps[1]:
        click.echo(f"{folder}: of step {steps[0]} of {steps[1]}: the tuning is not finished; without --export it goes on")
    defaults = build(GdinoQueriesSettings, {}, "gdino-queries").model_dump()
    others = "".join(f" --set {name}={value}" for name, value in tuned_settings(folder).items() if defaults[name] != value)
    click.echo(f"{folder}: extract with --tracker gdino-queries --set checkpoint={folder} --set masks=head{others}")


COMMANDS: tuple[click.Command, ...] = (tune_referdino,)
