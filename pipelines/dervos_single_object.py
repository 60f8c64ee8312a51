"""DeRVOS on Ref-YouTube-VOS (its public summary): one module, the benchmark's scores beside the paper's, and Ref-DAVIS17's.

`python -m pipelines.dervos_single_object --dvis DVIS --beit3 BEIT3 --youtube data/ref-youtube-vos --davis data/ref-davis17`. It is
trained on Ref-YouTube-VOS; for each expression the best track is selected. The summary has no number for Ref-DAVIS17, which the same
weights are tested on. Completed steps are skipped, an interrupted run continues.
"""

from __future__ import annotations

import functools
from pathlib import Path

import click

from pipelines.dervos_models import Caches, Models, changed, dervos_models, fits, published_row, run_with, warn_of_other_weights
from pipelines.page import Page, checked_settings
from pipelines.rows.published import named
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import extract_all
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import benchmark_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit, submit_selections
from rvos_select.training.train import train

YOUTUBE, DAVIS = "ref-youtube-vos", "ref-davis17"
ROW = "table_2.dervos"
TRAINED, HIDDEN = "fit", "valid"
OPEN = {YOUTUBE: "held_out", DAVIS: "valid"}
"""The paper's split of Ref-YouTube-VOS is its valid, scored by the benchmark's server; the twentieth of train that `held_out` names has
its ground truth, and is not trained on here. Ref-DAVIS17's valid has its own."""


@click.command(cls=Page)
@click.option("--youtube", type=click.Path(path_type=Path), default=Path("data/ref-youtube-vos"), show_default=True)
@click.option("--davis", type=click.Path(path_type=Path), default=Path("data/ref-davis17"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dervos_single_object"), show_default=True)
@functools.partial(dervos_models, has_rows=False)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of dervos_single_object.toml; may repeat.",
)
def dervos_single_object(youtube: Path, davis: Path, out: Path, settings: tuple[str, ...], models: Models) -> None:
    """From the datasets' folders to a report on each benchmark, and to the zips that their scorers take."""
    page = Path(__file__).with_suffix(".toml")
    published = published_row(ROW, YOUTUBE)
    resolved = checked_settings(page, merge(read_toml(page), parse_overrides([*published["set"], *settings])), settings)
    roots = {YOUTUBE: youtube, DAVIS: davis}
    caches = {name: Caches(out / "cache" / name, models.extraction(published)) for name in roots}
    warn_of_other_weights(published, caches[YOUTUBE].extraction)
    hidden = HIDDEN in type(open_dataset(YOUTUBE, youtube, TRAINED)).splits(youtube)
    splits = {YOUTUBE: [TRAINED, OPEN[YOUTUBE], *([HIDDEN] if hidden else [])], DAVIS: [OPEN[DAVIS]]}
    # What is missing is said before hours of extraction.
    open_dataset(DAVIS, davis, OPEN[DAVIS])
    run, own = out / "run", caches[YOUTUBE]
    for name, root in roots.items():
        extract_all(name, root, splits=splits[name], out=caches[name].base, check=fits(resolved, run), **caches[name].extraction)

    train(
        own.tracks(TRAINED),
        own.texts(TRAINED),
        settings=resolved,
        valid_tracks=own.tracks(OPEN[YOUTUBE]),
        valid_texts=own.texts(OPEN[YOUTUBE]),
        out=run,
        resume=run.exists(),
    )

    for name, split in OPEN.items():
        tracks = caches[name].tracks(split)
        selections = predict(run, tracks, caches[name].texts(split), out / f"selections/{name}-{split}.zarr")
        ours = benchmark_selections(selections, tracks, {}, root=roots[name])
        # Ref-DAVIS17's objects have no oracle: each object's prediction is the best of its annotator's expressions.
        changes = models.changes(settings)
        scores = {
            changed(f"ours, {name} {split}", changes): ours,
            **({f"oracle, {name} {split}": oracle(tracks)} if name == YOUTUBE else {}),
        }
        index = report(run, selections, tracks, out / f"report/{name}", root=roots[name], rows=scores)
        show_scores(scores, out / f"metrics/{name}.json", ours)
        paper_split = f"{name}/{HIDDEN}"
        numbers = published["paper"].get(paper_split, [])
        paper = f"{paper_split} {named(paper_split, numbers)}" if numbers else f"no number of {paper_split}"
        click.echo(f"the paper, with {published['upstream']}: {paper}; {run_with(changes)}page: {index}")
        if name == DAVIS:
            packed = submit_selections(selections, tracks, out / f"{name}_{split}.zip", root=davis)
            click.echo(f"for DAVIS's evaluation code: {packed}")

    if hidden:
        selections = predict(run, own.tracks(HIDDEN), own.texts(HIDDEN), out / f"selections/{YOUTUBE}-{HIDDEN}.zarr")
        masks = merge_masks(selections, own.tracks(HIDDEN), out / f"masks/{YOUTUBE}")
        packed = submit(masks, YOUTUBE, out / f"{YOUTUBE}_{HIDDEN}.zip", root=youtube, split=HIDDEN)
        click.echo(f"for the benchmark's server: {packed}")


if __name__ == "__main__":
    run_command(dervos_single_object)
