"""ReferDINO on A2D-Sentences and JHMDB-Sentences (Table 1): one module, each benchmark's scores beside the paper's.

By the paper's protocol: every scored frame is an image of its own (the splits `train-frames`, `test-frames`), its shorter side becomes
360 pixels, the longer at most 640, padded to multiples of 32; all queries of a sentence are its detections. `--imported RUN`, a run of
`rvos-select import-referdino a2d_swinb.pth`, predicts with the released weights. Without it the upstream is trained first, from
`--upstream`, as the paper does from the model of RefCOCO. With `--way cached`, which has no published number, GroundingDINO is frozen,
SAM 2 draws its boxes, and training reaches the box head alone: one frame has no enhancer. Completed steps are skipped, an interrupted
run continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.page import Page
from pipelines.referdino_models import Models, extract, referdino_models, select, tuned_models
from pipelines.referdino_rows import paper_rows, published_row, published_scores, scores, way_line
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import benchmark_selections
from rvos_select.reporting import report
from rvos_select.training.train import train, trains_on

A2D, JHMDB = "a2d-sentences", "jhmdb-sentences"
TRAIN, TEST = "train", "test-frames"
TRAIN_FRAMES = "train-frames"
PAGE = Path(__file__).with_suffix(".toml")
MAIN, IMPORTED = "table_1.referdino_t_images", "table_1.referdino_b_images"
"""The default row, and that of --imported: the released weights are of Swin-B."""


@click.command(cls=Page)
@click.option("--a2d", type=click.Path(path_type=Path), default=Path("data/a2d-sentences"), show_default=True)
@click.option("--jhmdb", type=click.Path(path_type=Path), default=Path("data/jhmdb-sentences"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/referdino_images"), show_default=True)
@referdino_models
@click.option("--row", help=f"Of papers/referdino.toml.  [default: {MAIN}; with --imported {IMPORTED}]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of referdino_images.toml and of the row; may repeat.",
)
def referdino_images(a2d: Path, jhmdb: Path, out: Path, row: str | None, settings: tuple[str, ...], models: Models) -> None:
    """From the datasets' folders to the scores of each benchmark and a report on it."""
    row = row or (MAIN if models.imported is None else IMPORTED)
    published = published_row(row, A2D, models)
    resolved = models.train_settings(PAGE, published, settings)

    click.echo(way_line(published))

    way, folder, roots = published["way"], out / published["name"], {A2D: a2d, JHMDB: jhmdb}
    for name, root in roots.items():
        open_dataset(name, root, TEST)
    if way == "tune":
        models = tuned_models(models, published, "a2d", open_dataset(A2D, a2d, TRAIN), folder)
    caches, extraction = out / "cache" / models.name(published), models.extraction(published, {"resizing": "image"})
    check = trains_on(resolved, folder / "run") if way == "cached" else None
    for name, root in roots.items():
        splits = [TRAIN_FRAMES] * (name == A2D and way == "cached") + [TEST]
        extract(name, root, splits, caches / name, extraction, check)

    def tracks(name: str, split: str) -> Path:
        return tracks_path(caches / name, split, extraction["tracker"])

    def texts(name: str, split: str) -> Path:
        return text_path(caches / name, split, extraction["encoder"])

    run = models.imported
    if way == "cached":
        run = folder / "run"
        train([tracks(A2D, TRAIN_FRAMES)], [texts(A2D, TRAIN_FRAMES)], settings=resolved, out=run, resume=run.exists())

    for name, root in roots.items():
        cache = tracks(name, TEST)
        selections = select(run, cache, texts(name, TEST), folder / models.of_version("selections") / f"{name}.zarr")
        ours = benchmark_selections(selections, [cache], {}, root=root)
        rows = {f"{published['name']}, {name} {TEST}": ours}
        show_scores(rows, folder / f"metrics/{name}.json", ours)
        click.echo(published_scores(name, scores(published, name) or []))
        rows |= paper_rows(name, scores(published, name) or [])
        click.echo(f"page: {report(run, selections, [cache], folder / f'report/{name}', root=root, rows=rows)}")


if __name__ == "__main__":
    run_command(referdino_images)
