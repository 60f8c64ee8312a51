"""ReferDINO on MeViS (Tables 2 to 4 and Figure 7): every step of the two stages on one page, the paper's numbers beside ours.

`--imported RUN`, a run of `rvos-select import-referdino mevis_swinb.pth`, predicts with the released weights alone. Without it the
upstream of the row is trained first, as the paper does, which takes hours to days; `--way cached` trains stage two alone on a frozen
GroundingDINO whose boxes SAM 2 draws, which has no published number. `--row table_3.without_tracker` for another row than the main one;
rows of Grounded-SAM 2 need no training. Completed steps are skipped, an interrupted run continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.page import Page
from pipelines.referdino_models import Models, extract, referdino_models, select, tuned_models
from pipelines.referdino_rows import paper_rows, published_row, published_scores, way_line
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.store import SelectionCache, text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.merging.policy import PolicyOptions, resolve_policy
from rvos_select.reporting import report
from rvos_select.submission import submit
from rvos_select.training.train import train, trains_on

TRAIN, OPEN, HIDDEN = "train", "valid_u", "valid"
"""MeViS publishes the ground truth of valid_u; the tables are scored on valid by its server."""
PAGE = Path(__file__).with_suffix(".toml")
MAIN, IMPORTED = "table_2.referdino_t", "table_2.referdino_b"
"""The default row, and that of --imported: the released weights are of Swin-B."""
THRESHOLDS = (0.1, 0.15, 0.25, 0.3)
"""Swept on valid_u; the paper's is 0.2."""


@click.command(cls=Page)
@click.option("--root", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/referdino_mevis"), show_default=True)
@referdino_models
@click.option("--row", help=f"Of papers/referdino.toml.  [default: {MAIN}; with --imported {IMPORTED}]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of referdino_mevis.toml and of the row; may repeat.",
)
def referdino_mevis(root: Path, out: Path, row: str | None, settings: tuple[str, ...], models: Models) -> None:
    """From MeViS's folders to a report on valid_u, and to the benchmark's zip where the split `valid` is there."""
    row = row or (MAIN if models.imported is None else IMPORTED)
    published = published_row(row, "mevis", models)
    resolved = models.train_settings(PAGE, published, settings)

    click.echo(way_line(published))

    way, folder, splits = published["way"], out / published["name"], type(open_dataset("mevis", root, OPEN)).splits(root)
    if way == "tune":
        models = tuned_models(models, published, "mevis", open_dataset("mevis", root, TRAIN), folder)
    cache, extraction = out / "cache" / models.name(published), models.extraction(published)
    used = [split for split in splits if split in (OPEN, HIDDEN) or (way == "cached" and split == TRAIN)]
    check = trains_on(resolved, folder / "run") if way == "cached" else None
    extract("mevis", root, used, cache, extraction, check)

    def tracks(split: str) -> Path:
        return tracks_path(cache, split, extraction["tracker"])

    def texts(split: str) -> Path:
        return text_path(cache, split, extraction["encoder"])

    run = models.imported
    if way == "cached":
        run = folder / "run"
        train(
            [tracks(TRAIN)],
            [texts(TRAIN)],
            settings=resolved,
            valid_tracks=[tracks(OPEN)],
            valid_texts=[texts(OPEN)],
            out=run,
            resume=run.exists(),
        )

    selections = select(run, tracks(OPEN), texts(OPEN), folder / models.of_version("selections") / f"{OPEN}.zarr")
    ours = evaluate_selections(selections, [tracks(OPEN)], root=root)
    scores = {f"{published['name']}, {OPEN}, {resolve_policy(SelectionCache(selections))}": ours}
    # Every track of the baseline has the score 1.
    for threshold in THRESHOLDS if run is not None else ():
        policy = PolicyOptions(threshold)
        scores[f"threshold {threshold}"] = evaluate_selections(selections, [tracks(OPEN)], root=root, policy=policy)
    scores[f"tracks' oracle, {OPEN}"] = oracle([tracks(OPEN)])
    show_scores(scores, folder / "metrics.json", ours)
    click.echo(published_scores("mevis", published["scores"]))
    rows = {**scores, **paper_rows("mevis", published["scores"])}
    click.echo(f"page: {report(run, selections, [tracks(OPEN)], folder / 'report', root=root, rows=rows)}")

    if HIDDEN in splits:
        selections = select(run, tracks(HIDDEN), texts(HIDDEN), folder / models.of_version("selections") / f"{HIDDEN}.zarr")
        masks = merge_masks(selections, [tracks(HIDDEN)], folder / models.of_version("masks"))
        zipped = submit(masks, "mevis", folder / "mevis_valid.zip", root=root, split=HIDDEN)
        click.echo(f"for the benchmark's server: {zipped}")


if __name__ == "__main__":
    run_command(referdino_mevis)
