"""`rvos-select`: training, prediction, masks, scores and what is shown of them. Heavy imports happen in the command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rvos_cache import files
from rvos_cache.cli import run_command
from rvos_select.cli.options import (
    ALLOW_MISSING,
    CACHES,
    LIMIT,
    PATH,
    ROOT,
    TEXTS,
    TEXTS_OF_SLICES,
    VIDEOS,
    policy_options,
    reject_policy_options,
)

if TYPE_CHECKING:
    from rvos_select.merging.policy import PolicyOptions


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """Train light selection modules from caches, select tracks, merge them, evaluate and show."""


@cli.command()
@CACHES
@TEXTS
@click.option("--valid-cache", "valid_caches", type=PATH, multiple=True, help="Validation tracks; may repeat.")
@click.option("--valid-text", "valid_texts", type=PATH, multiple=True, help="Validation words; may repeat.")
@click.option("--selector", help="sola, dmvs, mean-cosine, or your own package.module:Class.  [default: sola]")
@click.option("--config", type=PATH, help="TOML file with settings.")
@click.option("--set", "overrides", multiple=True, metavar="K=V", help="One setting, e.g. optim.lr=1e-4; may repeat.")
@click.option("--out", type=PATH, help="The run's folder.  [default: out/runs/<selector>]")
@click.option("--resume", is_flag=True, help="Go on where this run was interrupted.")
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
    from rvos_select.data.caches import texts_of
    from rvos_select.training import train as step

    values: dict[str, Any] = read_toml(config) if config else {}
    values = merge(values, parse_overrides(overrides))
    if selector:
        values["selector"] = selector
    settings = build(step.TrainSettings, values, str(config) if config else "train settings")
    run = out or Path("out/runs") / settings.selector.rpartition(":")[2]
    step.train(
        settings,
        list(caches),
        texts_of(caches, texts),
        list(valid_caches),
        texts_of(valid_caches, valid_texts),
        run,
        resume,
    )
    click.echo(f"run: {run}")


@cli.command()
@click.option("--run", type=PATH, required=True, help="Folder of a training run.")
@CACHES
@TEXTS
@click.option("--out", type=PATH, required=True, help="Selections to write (.zarr).")
def predict(run: Path, caches: tuple[Path, ...], texts: tuple[Path, ...], out: Path) -> None:
    """Score every candidate track of every expression."""
    from rvos_cache.store import format_uri
    from rvos_select.data.caches import texts_of
    from rvos_select.inference import predict as step

    step.predict(run, list(caches), texts_of(caches, texts), out)
    click.echo(f"selections: {format_uri(out)}")


@cli.command()
@click.option("--selections", type=PATH, required=True)
@CACHES
@click.option("--out", type=PATH, required=True, help="Folder for <video>/<expression>/<frame>.png.")
@policy_options()
def merge(selections: Path, caches: tuple[Path, ...], out: Path, policy: PolicyOptions) -> None:
    """OR the selected tracks and write mask PNGs."""
    from rvos_select.merging import merge as step

    step.merge(selections, list(caches), out, policy)
    click.echo(f"masks: {out}")


@cli.command()
@click.option("--dataset", help="Default: the cache's.")
@ROOT
@click.option("--split", help="Default: the cache's.")
@click.option("--predictions", type=PATH, help="Folder of mask PNGs.")
@click.option("--selections", type=PATH, help="Selections instead of PNGs.")
@click.option("--cache", "caches", type=PATH, multiple=True, help="Tracks cache of the selections; may repeat.")
@policy_options("the selector's; Ref-DAVIS17: the best track", "With --selections. ")
@TEXTS_OF_SLICES
@VIDEOS
@LIMIT
@ALLOW_MISSING
@click.option(
    "--map-mode", type=click.Choice(["all-queries", "top1"]), help="A2D, JHMDB, RefCOCO: what mAP counts.  [all-queries]"
)
@click.option("--reassign/--strict", "reassign", default=None, help="Ref-DAVIS17: objects of best fit, or each its own.  [first]")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes over videos.")
@click.option("--json", "json_path", type=PATH, help="Write the scores here.")
def evaluate(
    dataset: str | None,
    root: Path | None,
    split: str | None,
    predictions: Path | None,
    selections: Path | None,
    caches: tuple[Path, ...],
    policy: PolicyOptions,
    texts: tuple[Path, ...],
    videos: tuple[str, ...],
    limit: int | None,
    allow_missing: bool,
    map_mode: str | None,
    reassign: bool | None,
    processes: int,
    json_path: Path | None,
) -> None:
    """Scores of predictions, exactly as the benchmark of their dataset defines them.

    MeViS, Ref-YouTube-VOS: J, F and J&F, N-acc and T-acc where expressions have no target. Ref-DAVIS17: J and F of objects,
    by DAVIS's unsupervised protocol. A2D, JHMDB, RefCOCO: mAP, IoU and P@K.
    """
    from rvos_select import evaluation as step

    if (predictions is None) == (selections is None):
        raise click.UsageError("give --predictions PNGS, or --selections S.zarr with --cache C.zarr")
    scope = step.Scope(videos, limit, allow_missing, processes, texts)
    options: dict[str, Any] = {} if map_mode is None else {"map_mode": map_mode}
    if reassign is not None:
        options["strict"] = not reassign
    if predictions is not None:
        if dataset is None or root is None or split is None:
            raise click.UsageError("--predictions needs --dataset, --root and --split")
        reject_policy_options(policy)
        scores = step.benchmark_pngs(dataset, root, split, predictions, options, scope)
    else:
        if not caches:
            raise click.UsageError("--selections needs --cache")
        assert selections is not None
        scores = step.benchmark_selections(
            selections,
            list(caches),
            options,
            dataset=dataset,
            root=root,
            split=split,
            policy=policy,
            scope=scope,
        )
    show_scores({"prediction": scores, **step.annotator_rows(scores)}, json_path, scores)
    show_slices(scores.get("slices", {}))


@cli.command()
@click.argument("first", type=PATH, metavar="A.json")
@click.argument("second", type=PATH, metavar="B.json")
@click.option("--allow-missing", is_flag=True, help="List expressions that only one file has, and leave them out.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resampled videos.")
@click.option("--json", "json_path", type=PATH, help="Write the comparison here.")
def compare(first: Path, second: Path, allow_missing: bool, seed: int, json_path: Path | None) -> None:
    """How far the scores B are above A, expression by expression, with an interval over videos."""
    from rvos_select.evaluation import compare as step

    found = step.compare(first, second, allow_missing, seed)
    show_comparison(found)
    write_json(json_path, found)


@cli.command()
@CACHES
@click.option("--dataset", help="Default: the cache's own ground truth.")
@ROOT
@click.option("--split")
@VIDEOS
@LIMIT
@ALLOW_MISSING
@click.option("--json", "json_path", type=PATH, help="Write the scores here.")
def oracle(
    caches: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    split: str | None,
    videos: tuple[str, ...],
    limit: int | None,
    allow_missing: bool,
    json_path: Path | None,
) -> None:
    """The score of perfect labels: each target's best candidate by mean IoU, OR-ed (not the maximum over subsets).

    J, F and J&F of expressions for every dataset (Ref-DAVIS17: not of objects, as its benchmark scores them); for A2D, JHMDB
    and RefCOCO, where the dataset is at hand, also their own mAP, IoU and P@K.
    """
    from rvos_select.evaluation import oracle as step

    scores = step.oracle(
        list(caches), dataset=dataset, root=root, split=split, videos=videos, limit=limit, allow_missing=allow_missing
    )
    show_scores({"oracle": scores}, json_path, scores)
    if "image" in scores:
        show_scores({"oracle": scores["image"]}, None, scores["image"])


@cli.command()
@click.option("--predictions", type=PATH, help="Folder of mask PNGs.")
@click.option("--selections", type=PATH, help="ref-davis17: selections instead of PNGs; where objects overlap, scores decide.")
@click.option("--cache", "caches", type=PATH, multiple=True, help="Tracks cache of the selections; may repeat.")
@policy_options("the best track", "With --selections. ")
@click.option("--dataset", help="With --selections the cache's by default.")
@ROOT
@click.option("--split", help="Default: valid; with --selections the cache's.")
@click.option("--out", type=PATH, required=True, help="The zip to upload.")
def submit(
    predictions: Path | None,
    selections: Path | None,
    caches: tuple[Path, ...],
    policy: PolicyOptions,
    dataset: str | None,
    root: Path | None,
    split: str | None,
    out: Path,
) -> None:
    """Check the masks and pack them as the benchmark's server takes them."""
    from rvos_select import submission as step

    if (predictions is None) == (selections is None) or (selections is None) != (not caches):
        raise click.UsageError("give --predictions PNGS --dataset NAME, or --selections S.zarr with --cache C.zarr")
    if selections is not None:
        step.submit_selections(selections, list(caches), out, dataset, root, split, policy)
    else:
        if dataset is None:
            raise click.UsageError("--predictions needs --dataset")
        reject_policy_options(policy)
        assert predictions is not None
        step.submit(predictions, dataset, out, root=root, split=split or "valid")
    click.echo(f"submission: {out}")


@cli.command()
@click.option("--run", type=PATH, required=True)
@click.option("--selections", type=PATH)
@click.option("--cache", "caches", type=PATH, multiple=True)
@ROOT
@click.option("--out", type=PATH, required=True, help="Folder of the page.")
def report(run: Path, selections: Path | None, caches: tuple[Path, ...], root: Path | None, out: Path) -> None:
    """A page with curves, scores and pictures; opens from disk."""
    if (selections is None) != (not caches):
        raise click.UsageError("--selections and --cache go together")
    from rvos_select.reporting import report as step

    click.echo(f"page: {step(run, selections, list(caches), out, root=root)}")


@cli.command()
@click.argument("video", type=PATH)
@click.argument("sentence")
@click.option("--run", type=PATH, required=True, help="Folder of a training run.")
@click.option("--out", type=PATH, required=True, help="Folder for masks/ and overlay.mp4.")
@policy_options()
def ask(video: Path, sentence: str, run: Path, out: Path, policy: PolicyOptions) -> None:
    """Segment what SENTENCE names in VIDEO, an mp4 or a folder of frames."""
    from rvos_select.inference import ask as step

    answer = step.ask(video, sentence, run, out, policy)
    click.echo(f"{answer.selected} of {answer.tracks} tracks selected; best score {answer.best_score:.2f}")
    click.echo(f"masks: {answer.masks}\noverlay: {answer.overlay}")


@cli.command("import-sola")
@click.argument("checkpoint", type=PATH, metavar="CHECKPOINT.pth")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--cache", "caches", type=PATH, multiple=True, help="Tracks it was trained on, if not SOLA's own; may repeat.")
@click.option("--text", "texts", type=PATH, multiple=True, help="Words it was trained on.  [default: SOLA's RoBERTa]")
def import_sola(checkpoint: Path, out: Path, caches: tuple[Path, ...], texts: tuple[Path, ...]) -> None:
    """Make a run of a checkpoint that SOLA's released train.py saved; nothing but tensors is read from it."""
    from rvos_select.exchange.import_sola import import_sola as step

    click.echo(f"run: {step(checkpoint, out, list(caches), list(texts))}")


COLUMNS = {
    "video": {"J&F": "jf", "J": "j", "F": "f", "N-acc": "n_acc", "T-acc": "t_acc"},
    "image": {"mAP": "map", "oIoU": "overall_iou", "mIoU": "mean_iou"},
}
"""Protocol -> column of its table -> key of its scores; columns that no row has are left out."""


def show_scores(rows: Mapping[str, Mapping[str, Any]], json_path: Path | None, scores: Mapping[str, Any]) -> None:
    """Print a table in percent and write the JSON in fractions of 1."""
    from rich.console import Console
    from rich.table import Table

    wanted = COLUMNS.get(scores.get("protocol", "video"), COLUMNS["video"])
    columns = {title: key for title, key in wanted.items() if any(row.get(key) is not None for row in rows.values())}
    ranks = sorted({rank for row in rows.values() for rank in row.get("precision", {})})
    counted = next(name for name in ("samples", "expressions", "objects") if name in scores)
    table = Table("", *columns, *(f"P@{rank}" for rank in ranks), counted)
    for name, row in rows.items():
        cells = [_percent(row.get(key)) for key in columns.values()]
        table.add_row(name, *cells, *(_percent(row["precision"][rank]) for rank in ranks), str(len(row[counted])))
    Console().print(table)
    missing = scores.get("missing") or []
    if missing:
        click.echo(f"{len(missing)} missing predictions were scored 0: {', '.join(missing[:5])}", err=True)
    write_json(json_path, scores)


def show_slices(slices: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Print the scores of the parts of each attribute in percent."""
    from rich.console import Console
    from rich.table import Table

    if not slices:
        return

    keys = next(iter(next(iter(slices.values())).values()))
    titles = {key: {"j": "J", "f": "F", "jf": "J&F", "mean_iou": "mIoU"}[key] for key in keys if key != "count"}
    table = Table("slice", "", *titles.values(), "count")
    for name, held in slices.items():
        for part, row in held.items():
            table.add_row(name, part, *(_percent(row[key]) for key in titles), str(row["count"]))
    Console().print(table)


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print what `compare` returned, in percent."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    titles = {"jf": "J&F", "j": "J", "f": "F", "iou": "mIoU"}
    table = Table("", "A", "B", "B - A", "95 % of resampled videos")
    for key in (key for key in titles if key in found):
        row = found[key]
        ends = row["interval"] and " to ".join(f"{100 * end:+.2f}" for end in row["interval"])
        cells = [_percent(row["a"]), _percent(row["b"]), f"{100 * row['difference']:+.2f}", ends or "– (one video)"]
        table.add_row(titles[key], *cells)
    Console().print(table)
    moved = Table("moved most", "A", "B", "B - A")
    for row in [*found["up"], *found["down"][::-1]]:
        cells = [_percent(row["a"]), _percent(row["b"]), f"{100 * row['difference']:+.1f}"]
        moved.add_row(escape(row["expression"]), *cells)
    if moved.row_count:
        Console().print(moved)
    click.echo(f"{found['expressions']} expressions of {found['videos']} videos")
    for name, keys in (("A", found["only_a"]), ("B", found["only_b"])):
        if keys:
            click.echo(f"{len(keys)} expressions only in {name}: {', '.join(keys[:5])}", err=True)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, where there is one. Raises InputError when the disk refuses."""
    if path is not None:
        files.write_json(path, content)


def main() -> None:
    """The `rvos-select` program."""
    run_command(cli)
