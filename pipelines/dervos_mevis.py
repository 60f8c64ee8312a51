"""DeRVOS on MeViS (every table of its public summary): every step of the two stages on one page, the paper's numbers beside ours.

`python -m pipelines.dervos_mevis --root data/mevis --dvis DVIS --beit3 BEIT3`, folders that `rvos-cache convert-dvis` and
`convert-beit3` wrote; `--row table_5.cfma` for another row than the full model of the ablations. Completed steps are skipped, an
interrupted run continues; all rows of one upstream share their caches.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.dervos_models import Caches, Models, changed, dervos_models, fits, published_row, run_with, warn_of_other_weights
from pipelines.page import Page, checked_settings
from pipelines.rows.published import published_line
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import extract_all
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.merging.policy import PolicyOptions
from rvos_select.reporting import report
from rvos_select.submission import submit
from rvos_select.training.train import train

OPEN, HIDDEN = "valid_u", "valid"
"""MeViS publishes the ground truth of valid_u, on which the ablations are scored; valid is scored by its server."""
MAIN = "table_5.cfma_and_mgis"
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Swept on valid_u; the summary selects the track with the highest score, of which there is one."""


@click.command(cls=Page)
@click.option("--root", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dervos_mevis"), show_default=True)
@dervos_models
@click.option("--row", default=MAIN, show_default=True, help="Of papers/dervos.toml.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of dervos_mevis.toml and of the row; may repeat.",
)
def dervos_mevis(root: Path, out: Path, row: str, settings: tuple[str, ...], models: Models) -> None:
    """From MeViS's folders to a report on valid_u, and to the benchmark's zip where the split `valid` is there."""
    page = Path(__file__).with_suffix(".toml")
    published = published_row(row, "mevis")
    resolved = checked_settings(page, merge(read_toml(page), parse_overrides([*published["set"], *settings])), settings)

    caches = Caches(out / "cache" / models.name(published), models.extraction(published))
    warn_of_other_weights(published, caches.extraction)
    splits = type(open_dataset("mevis", root, OPEN)).splits(root)
    run, selections_folder = out / row / "run", out / row / "selections"
    extract_all("mevis", root, splits=splits, out=caches.base, check=fits(resolved, run), **caches.extraction)

    train(
        caches.tracks("train"),
        caches.texts("train"),
        settings=resolved,
        valid_tracks=caches.tracks(OPEN),
        valid_texts=caches.texts(OPEN),
        out=run,
        resume=run.exists(),
    )

    tracks = caches.tracks(OPEN)
    selections = predict(run, tracks, caches.texts(OPEN), selections_folder / f"{OPEN}.zarr")
    ours = evaluate_selections(selections, tracks, root=root)
    best = evaluate_selections(selections, tracks, root=root, policy=PolicyOptions(top1=True))
    changes = models.changes(settings)
    scores = {changed(f"{row}, {OPEN}", changes): ours, "the best track": best, f"tracks' oracle, {OPEN}": oracle(tracks)}
    for threshold in THRESHOLDS:
        scores[f"threshold {threshold}"] = evaluate_selections(selections, tracks, root=root, policy=PolicyOptions(threshold))
    index = report(run, selections, tracks, out / row / "report", root=root, rows=scores)
    show_scores(scores, out / row / "metrics.json", ours)
    click.echo(f"{published_line(published['paper'])}, with {published['upstream']}; {run_with(changes)}page: {index}")

    if HIDDEN in splits:
        selections = predict(run, caches.tracks(HIDDEN), caches.texts(HIDDEN), selections_folder / f"{HIDDEN}.zarr")
        masks = merge_masks(selections, caches.tracks(HIDDEN), out / row / "masks")
        zipped = submit(masks, "mevis", out / row / "mevis_valid.zip", root=root, split=HIDDEN)
        click.echo(f"for the benchmark's server: {zipped}")


if __name__ == "__main__":
    run_command(dervos_mevis)
