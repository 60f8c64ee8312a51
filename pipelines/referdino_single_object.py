"""ReferDINO on Ref-YouTube-VOS and Ref-DAVIS17 (Tables 1 and 5): one module, each benchmark's scores beside the paper's.

`--imported RUN`, a run of `rvos-select import-referdino ryt_swinb.pth`, predicts with the released weights alone. Without it the
upstream is trained first, as the paper does, which takes hours to days; the paper starts from the model of RefCOCO: `--upstream
RUN/upstream` of `import-referdino coco_swinb.pth`. `--way cached` trains stage two alone on a frozen GroundingDINO whose boxes SAM 2
draws, which has no published number. For each expression the best track is selected, in rows of Grounded-SAM 2 every track. Table 5 is
of Ref-YouTube-VOS alone. Completed steps are skipped, an interrupted run continues.
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
from rvos_select.evaluation.oracle import oracle
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit, submit_selections
from rvos_select.training.train import train, trains_on

YOUTUBE, DAVIS = "ref-youtube-vos", "ref-davis17"
FIT = "fit"
OPEN = {YOUTUBE: "held_out", DAVIS: "valid"}
HIDDEN = "valid"
"""The paper's row of Ref-YouTube-VOS is scored on its valid, by the benchmark's server; the twentieth of train that `held_out`
names has its ground truth, and is not trained on here. Ref-DAVIS17's valid has its own, and is the paper's split."""
PAGE = Path(__file__).with_suffix(".toml")
MAIN, IMPORTED = "table_1.referdino_t", "table_1.referdino_b"
"""The default row, and that of --imported: the released weights are of Swin-B."""


@click.command(cls=Page)
@click.option("--youtube", type=click.Path(path_type=Path), default=Path("data/ref-youtube-vos"), show_default=True)
@click.option("--davis", type=click.Path(path_type=Path), default=Path("data/ref-davis17"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/referdino_single_object"), show_default=True)
@referdino_models
@click.option("--row", help=f"Of papers/referdino.toml.  [default: {MAIN}; with --imported {IMPORTED}]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of referdino_single_object.toml and of the row; may repeat.",
)
def referdino_single_object(
    youtube: Path, davis: Path, out: Path, row: str | None, settings: tuple[str, ...], models: Models
) -> None:
    """From the datasets' folders to a report on each benchmark, and to the zips that their scorers take."""
    row = row or (MAIN if models.imported is None else IMPORTED)
    published = published_row(row, YOUTUBE, models)
    resolved = models.train_settings(PAGE, published, settings)

    click.echo(way_line(published))

    way, folder = published["way"], out / published["name"]
    # Of what the row's table is tested on.
    roots = {name: root for name, root in {YOUTUBE: youtube, DAVIS: davis}.items() if scores(published, name) is not None}
    for name, root in roots.items():
        open_dataset(name, root, OPEN[name])
    if way == "tune":
        models = tuned_models(models, published, "ytvos", open_dataset(YOUTUBE, youtube, FIT), folder)
    caches, extraction = out / "cache" / models.name(published), models.extraction(published)
    hidden = HIDDEN in type(open_dataset(YOUTUBE, youtube, OPEN[YOUTUBE])).splits(youtube)
    check = trains_on(resolved, folder / "run") if way == "cached" else None
    for name, root in roots.items():
        more = [FIT] * (way == "cached") + [HIDDEN] * hidden if name == YOUTUBE else []
        extract(name, root, [*more, OPEN[name]], caches / name, extraction, check)

    def tracks(name: str, split: str) -> Path:
        return tracks_path(caches / name, split, extraction["tracker"])

    def texts(name: str, split: str) -> Path:
        return text_path(caches / name, split, extraction["encoder"])

    run = models.imported
    if way == "cached":
        run = folder / "run"
        train(
            [tracks(YOUTUBE, FIT)],
            [texts(YOUTUBE, FIT)],
            settings=resolved,
            valid_tracks=[tracks(YOUTUBE, OPEN[YOUTUBE])],
            valid_texts=[texts(YOUTUBE, OPEN[YOUTUBE])],
            out=run,
            resume=run.exists(),
        )

    for name, root in roots.items():
        split = OPEN[name]
        cache = tracks(name, split)
        selections = select(run, cache, texts(name, split), folder / models.of_version("selections") / f"{name}-{split}.zarr")
        ours = benchmark_selections(selections, [cache], {}, root=root)
        rows = {f"{published['name']}, {name} {split}": ours}
        if name == YOUTUBE:
            # Ref-DAVIS17's objects have no oracle: each object's prediction is the best of its annotator's expressions.
            rows[f"oracle, {name} {split}"] = oracle([cache])
        show_scores(rows, folder / f"metrics/{name}.json", ours)
        click.echo(published_scores(name, scores(published, name) or []))
        rows |= paper_rows(name, scores(published, name) or [])
        click.echo(f"page: {report(run, selections, [cache], folder / f'report/{name}', root=root, rows=rows)}")
        if name == DAVIS:
            packed = submit_selections(selections, [cache], folder / f"{name}_{split}.zip", root=davis)
            click.echo(f"for DAVIS's evaluation code: {packed}")

    if hidden:
        cache = tracks(YOUTUBE, HIDDEN)
        selections = select(
            run, cache, texts(YOUTUBE, HIDDEN), folder / models.of_version("selections") / f"{YOUTUBE}-{HIDDEN}.zarr"
        )
        masks = merge_masks(selections, [cache], folder / models.of_version("masks") / YOUTUBE)
        packed = submit(masks, YOUTUBE, folder / f"{YOUTUBE}_{HIDDEN}.zip", root=youtube, split=HIDDEN)
        click.echo(f"for the benchmark's server: {packed}")


if __name__ == "__main__":
    run_command(referdino_single_object)
