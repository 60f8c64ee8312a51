"""Commands that run frozen models: extract, extract-text, extract-all, plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rvos_cache.cli.options import (
    BUDGET,
    CORRUPT,
    DATASET,
    DEVICE,
    ENCODER,
    ENGINE,
    JOBS,
    LIMIT,
    OUT,
    PATH,
    ROOT,
    SET,
    SHARD,
    SPLIT,
    TRACKER,
    VIDEOS,
)
from rvos_cache.cli.run import Resumable, print_reports
from rvos_cache.errors import InputError

if TYPE_CHECKING:
    from rvos_cache.trackers.planned import PlannedBytes


@click.command(cls=Resumable)
@DATASET
@ROOT
@SPLIT
@TRACKER
@OUT
@VIDEOS
@LIMIT
@SHARD
@SET
@CORRUPT
@BUDGET
@JOBS
@DEVICE
@ENGINE
def extract(
    dataset: str,
    root: Path,
    split: str,
    tracker: str,
    out: Path,
    videos: tuple[str, ...],
    limit: int | None,
    shard: str,
    overrides: tuple[str, ...],
    corrupt: str | None,
    budget: int | None,
    jobs: int,
    **engine: Any,
) -> None:
    """Write the tracks of a split to a cache. Run it again to resume."""
    from rvos_cache.extraction import engine_of
    from rvos_cache.extraction import extract as step
    from rvos_cache.settings import parse_overrides

    settings = parse_overrides(overrides)
    print_reports({
        str(out): step(
            dataset, root, split, tracker, out,
            videos=videos, limit=limit, shard=shard, overrides=settings, corrupt=corrupt, budget=budget,
            engine=engine_of(jobs=jobs, **engine),
        )
    })  # fmt: skip


@click.command("extract-text", cls=Resumable)
@DATASET
@ROOT
@SPLIT
@ENCODER
@SET
@OUT
@DEVICE
def extract_text(dataset: str, root: Path, split: str, encoder: str, overrides: tuple[str, ...], out: Path) -> None:
    """Write the words of a split to a cache. Run it again to resume."""
    from rvos_cache.extraction import extract_text as step
    from rvos_cache.settings import parse_overrides

    print_reports({str(out): step(dataset, root, split, encoder, out, overrides=parse_overrides(overrides))})


@click.command("extract-all", cls=Resumable)
@DATASET
@click.option("--root", type=PATH, help="Folder of the dataset.  [default: data/<dataset>]")
@click.option("--split", "splits", multiple=True, help="Only this split; may repeat.  [default: every split that is found]")
@TRACKER
@ENCODER
@click.option("--out", type=PATH, help="Folder of the caches.  [default: out/cache/<dataset>]")
@SET
@click.option("--text-set", "text_overrides", multiple=True, metavar="K=V", help="One setting of the encoder; may repeat.")
@click.option("--also", multiple=True, metavar="TRACKER", help="Another tracker's cache beside the first; may repeat.")
@click.option(
    "--also-set", "also_overrides", multiple=True, metavar="TRACKER.K=V", help="One setting of a tracker of --also; may repeat."
)
@CORRUPT
@BUDGET
@JOBS
@DEVICE
@ENGINE
def extract_all(
    dataset: str,
    root: Path | None,
    splits: tuple[str, ...],
    tracker: str,
    encoder: str,
    out: Path | None,
    overrides: tuple[str, ...],
    text_overrides: tuple[str, ...],
    also: tuple[str, ...],
    also_overrides: tuple[str, ...],
    corrupt: str | None,
    budget: int | None,
    jobs: int,
    **engine: Any,
) -> None:
    """Write tracks and words of every split. `make extract DATASET=...` runs this."""
    from rvos_cache.extraction import engine_of
    from rvos_cache.extraction import extract_all as step
    from rvos_cache.settings import parse_overrides

    folder = root or Path("data") / dataset
    print_reports(
        step(
            dataset, folder, splits=splits, tracker=tracker, encoder=encoder, out=out,
            overrides=parse_overrides(overrides), text_overrides=parse_overrides(text_overrides),
            also=_also_settings(also, also_overrides), corrupt=corrupt, budget=budget, engine=engine_of(jobs=jobs, **engine),
        )
    )  # fmt: skip


def _also_settings(trackers: tuple[str, ...], pairs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Tracker of --also -> its settings. Raises InputError for a tracker that is given twice, or a pair of no tracker."""
    from rvos_cache.settings import parse_overrides

    twice = next((name for name in trackers if trackers.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--also {twice} is given twice; give each tracker once")
    # The longest name first: one name of a plugin may begin with another.
    own: dict[str, list[str]] = {name: [] for name in sorted(trackers, key=len, reverse=True)}
    for pair in pairs:
        owner = next((name for name in own if pair.startswith(f"{name}.")), None)
        if owner is None:
            raise InputError(
                f"--also-set wants TRACKER.name=value with a tracker of --also ({', '.join(trackers) or 'none'}), got {pair!r}"
            )
        own[owner].append(pair.removeprefix(f"{owner}."))
    return {name: parse_overrides(own[name]) for name in trackers}


@click.command()
@DATASET
@ROOT
@SPLIT
@TRACKER
@SET
@CORRUPT
@BUDGET
@click.option("--sample", type=click.IntRange(1), default=3, show_default=True, help="Videos to time, from short to long.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes, workers or machines to plan for.")
@DEVICE
def plan(
    dataset: str,
    root: Path,
    split: str,
    tracker: str,
    overrides: tuple[str, ...],
    corrupt: str | None,
    budget: int | None,
    sample: int,
    jobs: int,
) -> None:
    """Estimate time, bytes and memory of an extraction. A few videos are timed on this machine; nothing is kept."""
    from rich.filesize import decimal

    from rvos_cache.extraction import TrackWork, plan_work
    from rvos_cache.settings import parse_overrides

    def print_planned(planned: PlannedBytes) -> None:
        this_run = f", this run{f' ({planned.note})' if planned.note else ''}"
        for value, size in planned.formatted().items():
            click.echo(f"{value}: {size}{this_run if value == planned.current else ''}")
        if budget is not None:
            planned.check(budget)

    result = plan_work(TrackWork(dataset, root, split, tracker, parse_overrides(overrides), corrupt), sample, print_planned)
    durations = (result.seconds, result.fastest, result.slowest)
    expected, fastest, slowest = (seconds / jobs + result.loading for seconds in durations)
    click.echo(f"{result.videos} videos, {result.frames} frames")
    measured = ", as measured on the videos timed" if result.planned is not None and result.planned.note else ""
    click.echo(f"{decimal(round(result.size), precision=2)} on disk{measured}")
    if result.memory is not None:
        click.echo(f"{decimal(result.memory, precision=2)} of memory in each job, at most, for the video that needs most")
    click.echo(f"{format_duration(expected)} with {jobs} job{'s' * (jobs > 1)}, each as fast as one alone on {result.machine}")
    click.echo(f"  ({format_range(fastest, slowest)} at the rates of the fastest and slowest video timed)")
    per_frame, frames = result.seconds / result.frames, sum(result.timed.values())
    each = ", ".join(f"{video_id} with {count}" for video_id, count in result.timed.items())
    click.echo(f"timed: {per_frame:.3g} s per frame over {frames} frames, {each}; the rest is loading and a look at all videos")
    for video_id, error in result.failed.items():
        click.echo(f"failed {video_id}: {error}", err=True)
    if budget is not None and result.size > budget:
        raise InputError(
            f"about {decimal(round(result.size), precision=2)} on disk, the budget is {decimal(budget, precision=2)}; "
            "extract fewer videos or give more room"
        )


def format_duration(seconds: float) -> str:
    """A duration in the largest unit of which it has at least two."""
    unit, name = next(((size, name) for size, name in ((3600, "hours"), (60, "minutes")) if seconds >= 2 * size), (1, "seconds"))
    count = seconds / unit
    return f"{count:.0f} {name}" if count >= 100 else f"{count:.3g} {name}"


def format_range(fastest: float, slowest: float) -> str:
    """Two durations, as in "58 to 65.6 seconds": a unit that both have is said once."""
    (number, unit), last = format_duration(fastest).split(), format_duration(slowest)
    return f"{number} to {last}" if last.endswith(f" {unit}") else f"{number} {unit} to {last}"


COMMANDS: tuple[click.Command, ...] = (extract, extract_text, extract_all, plan)
