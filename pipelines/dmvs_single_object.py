"""DMVS on Ref-YouTube-VOS and Ref-DAVIS17 (Table 2 of the paper): one module, each benchmark's scores beside the paper's.

`python -m pipelines.dmvs_single_object --vita CHECKPOINT --youtube data/ref-youtube-vos --images data/refcoco --davis
data/ref-davis17`. It is trained on Ref-YouTube-VOS together with RefCOCO, RefCOCO+ and RefCOCOg, whose images are
moved for ten frames; for each expression the best query is selected. Completed steps are skipped, an interrupted run
continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.dmvs_models import frozen_models
from pipelines.rows.papers import row_of
from pipelines.rows.published import named
from rvos_cache.cli import Resumable, run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import benchmark_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit, submit_selections
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

YOUTUBE, DAVIS = "ref-youtube-vos", "ref-davis17"
IMAGES = ("refcoco", "refcoco+", "refcocog")
TRAINED = {YOUTUBE: "fit", **dict.fromkeys(IMAGES, "train-pseudo10")}
"""Pseudo-videos are as long as a clip."""
OPEN = {YOUTUBE: "held_out", DAVIS: "valid"}
HIDDEN = "valid"
"""The paper's row of Ref-YouTube-VOS is scored on its valid, by the benchmark's server; the twentieth of train that `held_out`
names has its ground truth, and is not trained on here. Ref-DAVIS17's valid has its own, and is the paper's split."""


@click.command(cls=Resumable)
@click.option("--youtube", type=click.Path(path_type=Path), default=Path("data/ref-youtube-vos"), show_default=True)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    default=Path("data/refcoco"),
    show_default=True,
    help="RefCOCO, RefCOCO+, RefCOCOg.",
)
@click.option("--davis", type=click.Path(path_type=Path), default=Path("data/ref-davis17"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dmvs_single_object"), show_default=True)
@frozen_models
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting that replaces that of dmvs_single_object.toml; may repeat."
)
def dmvs_single_object(
    youtube: Path, images: Path, davis: Path, out: Path, settings: tuple[str, ...], models: dict[str, Any]
) -> None:
    """From the datasets' folders to a report on each benchmark, and to the zips that their scorers take."""
    page = Path(__file__).with_suffix(".toml")
    resolved = build(TrainSettings, merge(read_toml(page), parse_overrides(settings)), str(page))
    roots = {YOUTUBE: youtube, **dict.fromkeys(IMAGES, images), DAVIS: davis}
    hidden = HIDDEN in type(open_dataset(YOUTUBE, youtube, TRAINED[YOUTUBE])).splits(youtube)
    for name, root in roots.items():
        splits = [*(named[name] for named in (TRAINED, OPEN) if name in named), *([HIDDEN] if hidden and name == YOUTUBE else [])]
        extract_all(name, root, splits=splits, out=out / "cache" / name, **models)

    def tracks(name: str, split: str) -> Path:
        return tracks_path(out / "cache" / name, split, models["tracker"])

    def texts(name: str, split: str) -> Path:
        return text_path(out / "cache" / name, split, models["encoder"])

    run = out / "run"
    train(
        [tracks(name, split) for name, split in TRAINED.items()],
        [texts(name, split) for name, split in TRAINED.items()],
        settings=resolved,
        valid_tracks=[tracks(YOUTUBE, OPEN[YOUTUBE])],
        valid_texts=[texts(YOUTUBE, OPEN[YOUTUBE])],
        out=run,
        resume=run.exists(),
    )

    published = row_of("dmvs", "table_2.dmvs").paper
    for name, split in OPEN.items():
        cache = tracks(name, split)
        selections = predict(run, [cache], [texts(name, split)], out / f"selections/{name}-{split}.zarr")
        ours = benchmark_selections(selections, [cache], {}, root=roots[name])
        # Ref-DAVIS17's objects have no oracle: each object's prediction is the best of its annotator's expressions.
        scores = {f"ours, {name} {split}": ours, **({f"oracle, {name} {split}": oracle([cache])} if name == YOUTUBE else {})}
        index = report(run, selections, [cache], out / f"report/{name}", root=roots[name], rows=scores)
        show_scores(scores, out / f"metrics/{name}.json", ours)
        paper_split = f"{name}/{HIDDEN}"
        click.echo(f"the paper: {paper_split} {named(paper_split, published[paper_split])}; page: {index}")
        if name == DAVIS:
            packed = submit_selections(selections, [cache], out / f"{name}_{split}.zip", root=davis)
            click.echo(f"for DAVIS's evaluation code: {packed}")

    if hidden:
        selections = predict(
            run, [tracks(YOUTUBE, HIDDEN)], [texts(YOUTUBE, HIDDEN)], out / f"selections/{YOUTUBE}-{HIDDEN}.zarr"
        )
        masks = merge_masks(selections, [tracks(YOUTUBE, HIDDEN)], out / f"masks/{YOUTUBE}")
        packed = submit(masks, YOUTUBE, out / f"{YOUTUBE}_{HIDDEN}.zip", root=youtube, split=HIDDEN)
        click.echo(f"for the benchmark's server: {packed}")


if __name__ == "__main__":
    run_command(dmvs_single_object)
