"""DMVS on MeViS (Tables 1 and 3 to 7 of the paper): every step of the two stages on one page, the paper's numbers beside ours.

`python -m pipelines.dmvs_mevis --root data/mevis --vita CHECKPOINT`, which `rvos-cache convert-vita` made of the released one;
`--row table_5_initialisation.text` for another row than the main one. Completed steps are skipped, an interrupted run
continues; all rows of one checkpoint share their caches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.dmvs_models import frozen_models
from pipelines.page import Page, checked_settings
from pipelines.rows.papers import row_of
from pipelines.rows.published import published_line
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import extract_all
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.merging.policy import PolicyOptions
from rvos_select.reporting import report
from rvos_select.submission import submit
from rvos_select.training.train import train, trains_on

OPEN, HIDDEN = "valid_u", "valid"
"""MeViS publishes the ground truth of valid_u; the tables are scored on valid by its server, except one column of the first."""
MAIN = "table_1.val_u"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8)
"""Swept on valid_u; the paper's is 0.7."""


@click.command(cls=Page)
@click.option("--root", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dmvs_mevis"), show_default=True)
@frozen_models
@click.option("--row", default=MAIN, show_default=True, help="Of papers/dmvs.toml.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of dmvs_mevis.toml and of the row; may repeat.",
)
def dmvs_mevis(root: Path, out: Path, row: str, settings: tuple[str, ...], models: dict[str, Any]) -> None:
    """From MeViS's folders to a report on valid_u, and to the benchmark's zip where the split `valid` is there."""
    page = Path(__file__).with_suffix(".toml")
    published = row_of("dmvs", row)
    resolved = checked_settings(page, merge(read_toml(page), parse_overrides([*published.set, *settings])), settings)

    caches = out / "cache"
    splits = type(open_dataset("mevis", root, OPEN)).splits(root)
    tracks = {split: [tracks_path(caches, split, models["tracker"])] for split in splits}
    texts = {split: [text_path(caches, split, models["encoder"])] for split in splits}
    run, selections_folder = out / row / "run", out / row / "selections"
    extract_all("mevis", root, splits=splits, out=caches, check=trains_on(resolved, run), **models)

    train(
        tracks["train"],
        texts["train"],
        settings=resolved,
        valid_tracks=tracks[OPEN],
        valid_texts=texts[OPEN],
        out=run,
        resume=run.exists(),
    )

    selections = predict(run, tracks[OPEN], texts[OPEN], selections_folder / f"{OPEN}.zarr")
    ours = evaluate_selections(selections, tracks[OPEN], root=root)
    scores = {f"{row}, {OPEN}": ours, f"tracks' oracle, {OPEN}": oracle(tracks[OPEN])}
    for threshold in THRESHOLDS:
        scores[f"threshold {threshold}"] = evaluate_selections(
            selections, tracks[OPEN], root=root, policy=PolicyOptions(threshold)
        )
    index = report(run, selections, tracks[OPEN], out / row / "report", root=root, rows=scores)
    show_scores(scores, out / row / "metrics.json", ours)
    click.echo(f"{published_line(published.paper)}; page: {index}")

    if HIDDEN in splits:
        selections = predict(run, tracks[HIDDEN], texts[HIDDEN], selections_folder / f"{HIDDEN}.zarr")
        masks = merge_masks(selections, tracks[HIDDEN], out / row / "masks")
        zipped = submit(masks, "mevis", out / row / "mevis_valid.zip", root=root, split=HIDDEN)
        click.echo(f"for the benchmark's server: {zipped}")


if __name__ == "__main__":
    run_command(dmvs_mevis)
