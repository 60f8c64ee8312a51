"""SOLA on MeViS (Table 1 of the paper): every step of the two stages on one page, the paper's numbers beside ours.

`python -m pipelines.sola_mevis --root data/mevis`. As in the paper's code it is trained on ground-truth and grid tracks of SAM 2
and tested on grid and box tracks; `--tracker NAME` takes one tracker for all. Completed steps are skipped, an interrupted run
continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.page import Page, checked_settings
from pipelines.rows.papers import row_of
from pipelines.rows.published import published_line
from pipelines.sola_models import Models, sola_models
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit
from rvos_select.training.train import train

TRAIN, OPEN, HIDDEN = "train", "valid_u", "valid"
"""MeViS publishes the ground truth of valid_u; the paper's table is scored on valid, by the benchmark's server."""


@click.command(cls=Page)
@click.option("--root", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/sola_mevis"), show_default=True)
@sola_models
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting that replaces that of sola_mevis.toml; may repeat."
)
def sola_mevis(root: Path, out: Path, settings: tuple[str, ...], models: Models) -> None:
    """From MeViS's folders to a report on valid_u, and to the benchmark's zip where the split `valid` is there."""
    page = Path(__file__).with_suffix(".toml")
    resolved = checked_settings(page, merge(read_toml(page), parse_overrides(settings)), settings)
    caches = out / "cache"
    hidden = HIDDEN in type(open_dataset("mevis", root, OPEN)).splits(root)
    models.extract("mevis", root, TRAIN, caches, trained=True)
    for split in [OPEN, *([HIDDEN] if hidden else [])]:
        models.extract("mevis", root, split, caches)
    tracks = models.tracks(caches, OPEN)
    texts = models.texts(caches, OPEN)

    run = out / "run"
    train(
        models.tracks(caches, TRAIN, trained=True),
        models.texts(caches, TRAIN),
        settings=resolved,
        valid_tracks=tracks,
        valid_texts=texts,
        out=run,
        resume=run.exists(),
    )

    selections = predict(run, tracks, texts, out / f"selections/{OPEN}.zarr")
    ours = evaluate_selections(selections, tracks, root=root)
    scores = {f"ours, {OPEN}": ours, f"oracle, {OPEN}": oracle(tracks)}
    index = report(run, selections, tracks, out / "report", root=root, rows=scores)
    show_scores(scores, out / "metrics.json", ours)
    published = row_of("sola", "table_1.val").paper
    click.echo(f"{published_line(published)}; page: {index}")

    if hidden:
        tracks, texts = models.tracks(caches, HIDDEN), models.texts(caches, HIDDEN)
        selections = predict(run, tracks, texts, out / f"selections/{HIDDEN}.zarr")
        masks = merge_masks(selections, tracks, out / "masks")
        click.echo(f"for the benchmark's server: {submit(masks, 'mevis', out / 'mevis_valid.zip', root=root, split=HIDDEN)}")


if __name__ == "__main__":
    run_command(sola_mevis)
