"""`rvos-select evaluate`, `compare`, `oracle` and `submit`: commands that score or submit predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rvos_select.cli.options import (
    ALLOW_MISSING,
    CACHES,
    LIMIT,
    PATH,
    ROOT,
    TEXTS_OF_SLICES,
    VIDEOS,
    policy_options,
    reject_policy_options,
)
from rvos_select.cli.tables import show_comparison, show_scores, show_slices, write_json

if TYPE_CHECKING:
    from rvos_select.merging.policy import PolicyOptions


@click.command()
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
    "--map-mode",
    type=click.Choice(["all-queries", "top1"]),
    help="A2D, JHMDB, RefCOCO: the masks that mAP counts.  [default: all-queries]",
)
@click.option(
    "--reassign/--strict",
    "reassign",
    default=None,
    help="Ref-DAVIS17: assign predictions to objects, or score each object with its own.  [default: --reassign]",
)
@click.option(
    "--also",
    multiple=True,
    type=click.Choice(["sola"]),
    help="Print a further number. sola: the F that SOLA's own code prints, an F1 of pixels pooled over frames, no boundary F.",
)
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
    also: tuple[str, ...],
    processes: int,
    json_path: Path | None,
) -> None:
    """Score predictions exactly as the benchmark of their dataset does.

    MeViS, Ref-YouTube-VOS: J, F and J&F, and N-acc and T-acc where expressions have no target. Ref-DAVIS17: J and F of objects,
    by DAVIS's unsupervised protocol. A2D, JHMDB, RefCOCO: mAP, IoU and P@K.
    """
    from rvos_cache.store import read_card
    from rvos_select import evaluation as step

    if (predictions is None) == (selections is None):
        raise click.UsageError("give --predictions PNGS, or --selections S.zarr with --cache C.zarr")
    scope = step.Scope(videos, limit, allow_missing, processes, texts, also)
    options: dict[str, Any] = {} if map_mode is None else {"map_mode": map_mode}
    if reassign is not None:
        options["strict"] = not reassign
    if predictions is not None:
        card = read_card(caches[0]) if caches else None
        if card is not None:
            dataset, split = dataset or card.dataset, split or card.split
            root = root or (Path(card.root) if card.root else None)
        if dataset is None or root is None or split is None:
            raise click.UsageError("--predictions needs --dataset, --root and --split, or --cache of a cache that names them")
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
    show_slices(scores)


@click.command()
@click.argument("first", type=PATH, metavar="A.json")
@click.argument("second", type=PATH, metavar="B.json")
@click.option("--allow-missing", is_flag=True, help="List expressions that only one file has, and leave them out.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the resampled videos.")
@click.option("--json", "json_path", type=PATH, help="Write the comparison here.")
def compare(first: Path, second: Path, allow_missing: bool, seed: int, json_path: Path | None) -> None:
    """Compare the scores B with A, expression by expression, with a confidence interval over videos."""
    from rvos_select.evaluation import compare as step

    comparison = step.compare(first, second, allow_missing, seed)
    show_comparison(comparison)
    write_json(json_path, comparison)


@click.command()
@CACHES
@click.option("--dataset", help="Default: the cache's.")
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
    """Score perfect labels: each target's best candidate by mean IoU, OR-ed (not the maximum over subsets of tracks).

    J, F and J&F of expressions for every dataset (Ref-DAVIS17: not of objects, which its benchmark scores); for A2D, JHMDB and
    RefCOCO also mAP, IoU and P@K, where their dataset is found.
    """
    from rvos_select.evaluation import oracle as step

    scores = step.oracle(
        list(caches), dataset=dataset, root=root, split=split, videos=videos, limit=limit, allow_missing=allow_missing
    )
    if "image" in scores:
        show_scores({"oracle": scores["image"]}, None, scores["image"])
        click.echo(
            "oracle: one mask of each expression, its best candidate by mean IoU. A prediction may have a higher mAP, which ranks all "
            "candidates, or overall IoU, in which large objects count more. J, F and J&F of the same masks:"
        )
    show_scores({"oracle": scores}, json_path, scores)


@click.command()
@click.option("--predictions", type=PATH, help="Folder of mask PNGs.")
@click.option("--selections", type=PATH, help="Ref-DAVIS17: selections instead of PNGs; where objects overlap, scores decide.")
@click.option("--cache", "caches", type=PATH, multiple=True, help="Tracks cache of the selections; may repeat.")
@policy_options("the best track", "With --selections. ")
@click.option("--dataset", help="With --selections the cache's by default.")
@click.option(
    "--root", type=PATH, help="The dataset's folder.  [default: data/DATASET; with --selections the root in the cache's card]"
)
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
    """Check the masks and pack them for the benchmark's server."""
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


COMMANDS = (evaluate, compare, oracle, submit)
