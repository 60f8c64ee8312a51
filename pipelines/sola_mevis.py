"""SOLA on MeViS (Table 1 of the paper): every step of the two stages on one page, the paper's numbers beside ours.

`python -m pipelines.sola_mevis --root data/mevis`. Completed steps are skipped, an interrupted run
continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.rows.papers import row_of
from pipelines.rows.published import published_line
from rvos_cache.cli import Resumable, run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

OPEN, HIDDEN = "valid_u", "valid"
"""MeViS publishes the ground truth of valid_u; the paper's table is scored on valid, by the benchmark's server."""


@click.command(cls=Resumable)
@click.option("--root", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/sola_mevis"), show_default=True)
@click.option("--tracker", default="flow", show_default=True, help="Name in TRACKERS, or package.module:Class.")
@click.option("--encoder", default="roberta", show_default=True, help="Name in TEXT_ENCODERS, or package.module:Class.")
@click.option("--jobs", default=1, show_default=True, help="Processes that extract.")
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting that replaces that of sola_mevis.toml; may repeat."
)
def sola_mevis(root: Path, out: Path, tracker: str, encoder: str, jobs: int, settings: tuple[str, ...]) -> None:
    """From MeViS's folders to a report on valid_u, and to the benchmark's zip where the split `valid` is there."""
    caches = out / "cache"
    extract_all("mevis", root, tracker=tracker, encoder=encoder, out=caches, jobs=jobs)

    def tracks(split: str) -> list[Path]:
        return [tracks_path(caches, split, tracker)]

    def texts(split: str) -> list[Path]:
        return [text_path(caches, split, encoder)]

    run = out / "run"
    page = Path(__file__).with_suffix(".toml")
    resolved = build(TrainSettings, merge(read_toml(page), parse_overrides(settings)), str(page))
    train(
        tracks("train"),
        texts("train"),
        settings=resolved,
        valid_tracks=tracks(OPEN),
        valid_texts=texts(OPEN),
        out=run,
        resume=run.exists(),
    )

    selections = predict(run, tracks(OPEN), texts(OPEN), out / f"selections/{OPEN}.zarr")
    ours = evaluate_selections(selections, tracks(OPEN), root=root)
    scores = {f"ours, {OPEN}": ours, f"oracle, {OPEN}": oracle(tracks(OPEN))}
    index = report(run, selections, tracks(OPEN), out / "report", root=root, rows=scores)
    show_scores(scores, out / "metrics.json", ours)
    published = row_of("sola", "table_1.val").paper
    click.echo(f"{published_line(published)}; page: {index}")

    if HIDDEN in type(open_dataset("mevis", root, OPEN)).splits(root):
        selections = predict(run, tracks(HIDDEN), texts(HIDDEN), out / f"selections/{HIDDEN}.zarr")
        masks = merge_masks(selections, tracks(HIDDEN), out / "masks")
        click.echo(f"for the benchmark's server: {submit(masks, 'mevis', out / 'mevis_valid.zip', root=root, split=HIDDEN)}")


if __name__ == "__main__":
    run_command(sola_mevis)
