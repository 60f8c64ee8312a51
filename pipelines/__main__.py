"""`python -m pipelines`: the board of every row of every paper; `run`, `score`, `compare` and `readme` below it."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipelines.rows import board as board_of
from pipelines.rows.check import check_options
from pipelines.rows.needs import Places, trackers_of
from pipelines.rows.papers import all_papers, find_row
from pipelines.rows.published import IMAGES, keys_of, named, titles_of
from pipelines.rows.readme import README, write_readme
from pipelines.rows.results import Record, Score, add_scores, mean_and_deviation, read_record, read_server
from pipelines.rows.runner import run_row
from pipelines.rows.steps import is_scored_by_server, steps_of
from rvos_cache.cli import Resumable, run_command
from rvos_cache.errors import InputError

PATH = click.Path(path_type=Path)
OUT = Places().out
FEWEST_VIDEOS = 6
"""Of five videos all differ in one direction by chance more than once in 20 times (2 / 2**5), of six less (2 / 2**6)."""


def places_options(command: Callable[..., None]) -> Callable[..., None]:
    """--out, --root, --weights, --set and --tracker-set, which the command takes as one argument, `places`."""

    @click.option("--out", type=PATH, default=OUT, show_default=True, help="Folder of caches, runs and scores.")
    @click.option(
        "--root", "roots", multiple=True, metavar="DATASET=PATH", help="Folder of a dataset.  [default: data/<dataset>]"
    )
    @click.option("--weights", multiple=True, metavar="NAME=PLACE", help="Weights of needs.toml: a folder, or a name on the hub.")
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="K=V",
        help="A setting of training, or of live tuning where a row is tuned, that replaces that of the rows.",
    )
    @click.option(
        "--tracker-set",
        multiple=True,
        metavar="TRACKER.K=V",
        help="A setting of a tracker of papers/<system>.toml, e.g. grid.batch=8.",
    )
    @functools.wraps(command)
    def with_places(
        *args: Any,
        out: Path,
        roots: tuple[str, ...],
        weights: tuple[str, ...],
        overrides: tuple[str, ...],
        tracker_set: tuple[str, ...],
        **others: Any,
    ) -> None:
        folders = {name: Path(path) for name, path in _pairs("--root", roots).items()}
        trackers = _tracker_set(tracker_set, others.get("row"))
        places = Places(out, folders, _pairs("--weights", weights), overrides, trackers)
        places.check()
        command(*args, places=places, **others)

    return with_places


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--system", help="Only the rows of this system, as papers/<system>.toml is named.")
@click.option("--todo", is_flag=True, help="Only the rows that can be run here and have no scores yet.")
@places_options
def pipelines(context: click.Context, as_json: bool, system: str | None, todo: bool, places: Places) -> None:
    """Every row of every table of the papers: published numbers, what it needs and costs, and ours.

    The state of a row: "ready"; "missing: …", what it needs and where to get it is listed below the tables; "scored"; "to be sent: …",
    the zip for a benchmark's server; "old", scored before the row was changed; "not here: …", and why.
    """
    if context.invoked_subcommand is not None:
        return
    papers = all_papers()
    if system is not None and system not in papers:
        raise InputError(f"--system {system}: no such system; there are: {', '.join(papers)}")
    rows = list(board_of.entries({name: paper for name, paper in papers.items() if system in (None, name)}, places))
    if todo:
        rows = [entry for entry in rows if entry["state"] != "scored" and not entry["state"].startswith("not here")]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        board_of.show(rows)


@pipelines.command(cls=Resumable)
@click.argument("row")
@click.option("--dry-run", is_flag=True, help="Print the commands.")
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs with seeds 0, 1, …: mean and deviation."
)
@places_options
def run(row: str, dry_run: bool, seeds: int, places: Places) -> None:
    """Do everything that is left of ROW, such as sola.table_1.val_u, and show its scores beside the paper's."""
    paper, name, content = find_row(row, all_papers())
    if dry_run:
        check_options(paper, name, content, places, seeds)
        for seed in range(seeds):
            click.echo("\n".join(step.line() for step in steps_of(paper, name, content, places, seed)))
        return
    show_record(run_row(paper, name, content, places, range(seeds)), content.paper, places)


@pipelines.command()
@click.argument("row")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--split", metavar="DATASET/SPLIT", help="Where the row is tested on several.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of a row that was run with several.")
@places_options
def score(row: str, result: Path, split: str | None, seed: int, places: Places) -> None:
    """Record what a benchmark's server said of ROW, from the text file RESULT."""
    _, name, content = find_row(row, all_papers())
    before = read_record(name, places)
    returned = read_server(name, content, result, split, before, seed)
    for old in before.of(returned.split):
        if old.seed == seed and old.values != returned.values:
            click.echo(f"replaced: {_means([old], old.split)}, seed {seed}, of {old.date}, from {old.source}")
    show_record(add_scores(name, places, [returned]), content.paper, places)


@pipelines.command()
@click.argument("a")
@click.argument("b")
@click.option("--split", metavar="DATASET/SPLIT", help="Where both rows are tested on several.")
@places_options
def compare(a: str, b: str, split: str | None, places: Places) -> None:
    """Whether row B differs from row A by more than chance: expression by expression, over resampled videos."""
    from rvos_select.cli.tables import show_comparison
    from rvos_select.evaluation.compare import compare as step

    names = [find_row(row, all_papers())[1] for row in (a, b)]
    records = [read_record(name, places) for name in names]
    scored = [{score.split: score for score in record.scores if score.seed == 0} for record in records]
    common = [key for key in scored[0] if key in scored[1] and not is_scored_by_server(key)]
    if split is None and len(common) == 1:
        split = common[0]
    if split not in common:
        raise InputError(
            f"rows {names[0]} and {names[1]}: scored here on {', '.join(common) or 'no common split'}; run both rows on one split, and "
            "give it as --split where there are several; compare needs the score of each expression, which a server does not tell"
        )
    first, second = (own[split] for own in scored)
    for name, own in zip("AB", (first, second)):
        click.echo(f"{name}: {names['AB'.index(name)]}, seed 0, {own.date}{_with(own)}")
    comparison = step(first.source, second.source)
    show_comparison(comparison)
    click.echo(verdict(comparison[keys_of(split)[0]]["interval"], titles_of(split)[0], comparison["videos"]))
    for name, record in zip("AB", records):
        show_deviation(f"{name}: deviation", record.of(split), split)


@pipelines.command()
@click.option("--out", type=PATH, default=README, help="[default: pipelines/README.md]")
def readme(out: Path) -> None:
    """Write pipelines/README.md with its rows made anew."""
    click.echo(write_readme(all_papers(), out))


def verdict(interval: Sequence[float] | None, title: str, videos: int) -> str:
    """Whether the 95 % interval of a difference, B - A, leaves zero out. videos: those that were resampled."""
    if interval is None:
        return f"{title}: one video has no interval; nothing can be said about chance"
    if videos < FEWEST_VIDEOS:
        return f"{title}: {videos} videos are too few to tell a difference from chance; compare on {FEWEST_VIDEOS} or more"
    low, high = interval
    if low <= 0 <= high:
        return f"{title}: the interval contains 0; a difference is not shown by these videos"
    return f"{title}: {'B' if low > 0 else 'A'} is better by more than chance"


def show_record(record: Record, published: dict[str, list[float]], places: Places) -> None:
    """Print our scores beside the paper's, with the interval and the oracle; of a server's split, where to send the zip."""
    from pipelines.rows.needs import all_needs

    for split, paper in published.items():
        scores = record.of(split)
        dataset, _, name = split.partition("/")
        click.echo(f"{record.row}, {split}: the paper has {named(split, paper)}")
        if scores:
            click.echo(f"  ours: {_means(scores, split)}{_with(scores[0])}")
            show_deviation("  deviation", scores, split)
            first = titles_of(split)[0]
            if scores[0].interval is not None:
                low, high = scores[0].interval
                click.echo(f"  95 % of resampled videos{_of_seed(scores)}: {first} {low:.1f} to {high:.1f}")
            if scores[0].oracle is not None:
                # Of images, see `rvos-select oracle`.
                kind = "; one mask each, by mean IoU, which a ranking of all may exceed" if dataset in IMAGES else ""
                click.echo(f"  oracle of its candidates: {first} {scores[0].oracle:.1f}{kind}")
        for zipped in record.zips(split):
            words = ["score", record.row, "RESULT.txt"]
            words += ["--split", split] if sum(map(is_scored_by_server, published)) > 1 else []
            words += ["--seed", str(zipped.seed)] if zipped.seed else []
            words += ["--out", str(places.out)] if places.out != OUT else []
            server = all_needs().datasets[dataset].servers[name]
            click.echo(f"  send {zipped.source} to {server}; then: python -m pipelines {shlex.join(words)}")


def show_deviation(name: str, scores: Sequence[Score], split: str) -> None:
    """Print mean and deviation of each measure over seeds; of one seed nothing."""
    for key, title in zip(keys_of(split), titles_of(split)):
        mean, deviation = mean_and_deviation(scores, key)
        if mean is not None and deviation is not None:
            click.echo(f"{name} of {title} over {len(scores)} seeds: {deviation:.2f}, mean {mean:.2f}")


def _means(scores: Sequence[Score], split: str) -> str:
    means = {title: mean_and_deviation(scores, key)[0] for key, title in zip(keys_of(split), titles_of(split))}
    return ", ".join(f"{title} {mean:.1f}" for title, mean in means.items() if mean is not None)


def _with(score: Score) -> str:
    return f", with {' '.join(score.changes)}" if score.changes else ""


def _of_seed(scores: Sequence[Score]) -> str:
    return f", seed {scores[0].seed}" if len(scores) > 1 else ""


def _tracker_set(texts: tuple[str, ...], row: str | None) -> dict[str, tuple[str, ...]]:
    """--tracker-set as the settings of each tracker. row: the row that a command is about; errors name its trackers alone."""
    if not texts:
        return {}
    papers = all_papers()
    if row is None:
        names, owner = dict.fromkeys(name for paper in papers.values() for name in paper.trackers), "papers/"
    else:
        paper, whole, content = find_row(row, papers)
        names, owner = dict.fromkeys(trackers_of(paper, content)), f"row {whole}"
    trackers: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, dot, pair = text.partition(".")
        if not dot or "=" not in pair:
            raise InputError(
                f"--tracker-set {text}: expected TRACKER.NAME=VALUE, as in --tracker-set grid.batch=8; trackers of {owner}: "
                f"{', '.join(names)}"
            )
        # A row that cannot be run here has none, which is reported later.
        if names and name not in names:
            raise InputError(f"--tracker-set {name}: no tracker of that name in {owner}; there are: {', '.join(names)}")
        trackers[name] = (*trackers.get(name, ()), pair)
    return trackers


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise InputError(f"{option} {name}: expected NAME=VALUE, as in {option} mevis=/data/mevis")
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    run_command(pipelines)
