"""SSA on Ref-YouTube-VOS and Ref-DAVIS17 (Table 3 of the paper): one module, each benchmark's scores beside the paper's.

`python -m pipelines.ssa_single_object --clip CLIP --init COCO.pth --youtube data/ref-youtube-vos --images data/refcoco --davis
data/ref-davis17`. It is trained on the images of RefCOCO, RefCOCO+ and RefCOCOg, and from these weights on Ref-YouTube-VOS together
with the same images moved for eight frames; for each expression the best query is selected. Completed steps are skipped, an
interrupted run continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.rows.papers import row_of
from pipelines.rows.published import named
from pipelines.ssa_models import Models, ssa_models
from rvos_cache.cli import Resumable, run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import benchmark_selections
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit, submit_selections
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

YOUTUBE, DAVIS = "ref-youtube-vos", "ref-davis17"
IMAGES = ("refcoco", "refcoco+", "refcocog")
STAGES = {
    "images": dict.fromkeys(IMAGES, "train"),
    "videos": {YOUTUBE: "fit", **dict.fromkeys(IMAGES, "train-pseudo8")},
}
"""Training, in this order: dataset -> split. Pseudo-videos are as long as a clip."""
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
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/ssa_single_object"), show_default=True)
@ssa_models
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of the training's TOML file, of both trainings (optim.lr=1e-4) or of one (images.epochs=5); may "
    "repeat.",
)
def ssa_single_object(youtube: Path, images: Path, davis: Path, out: Path, settings: tuple[str, ...], models: Models) -> None:
    """From the datasets' folders to a report on each benchmark, and to the zips that their scorers take."""
    page = Path(__file__).with_suffix(".toml")
    resolved = stage_settings(page, settings, models.training)
    roots = {YOUTUBE: youtube, **dict.fromkeys(IMAGES, images), DAVIS: davis}
    hidden = HIDDEN in type(open_dataset(YOUTUBE, youtube, OPEN[YOUTUBE])).splits(youtube)
    for name, root in roots.items():
        splits = [named[name] for named in (*STAGES.values(), OPEN) if name in named]
        splits += [HIDDEN] if hidden and name == YOUTUBE else []
        extract_all(name, root, splits=splits, out=out / "cache" / name, **models.extraction)

    def tracks(name: str, split: str) -> Path:
        return tracks_path(out / "cache" / name, split, models.extraction["tracker"])

    def texts(name: str, split: str) -> Path:
        return text_path(out / "cache" / name, split, models.extraction["encoder"])

    runs = {stage: out / "runs" / stage for stage in STAGES}
    for stage, trained in STAGES.items():
        values = resolved[stage]
        if stage == "videos":
            values = {**values, "init": str(runs["images"])}
        train(
            [tracks(name, split) for name, split in trained.items()],
            [texts(name, split) for name, split in trained.items()],
            settings=build(TrainSettings, values, str(page)),
            valid_tracks=[tracks(YOUTUBE, OPEN[YOUTUBE])],
            valid_texts=[texts(YOUTUBE, OPEN[YOUTUBE])],
            out=runs[stage],
            resume=runs[stage].exists(),
        )

    published = row_of("ssa", "table_3.ssa").paper
    for name, split in OPEN.items():
        cache = tracks(name, split)
        selections = predict(runs["videos"], [cache], [texts(name, split)], out / f"selections/{name}-{split}.zarr")
        ours = benchmark_selections(selections, [cache], {}, root=roots[name])
        index = report(
            runs["videos"], selections, [cache], out / f"report/{name}", root=roots[name], rows={f"ours, {name} {split}": ours}
        )
        show_scores({f"ours, {name} {split}": ours}, out / f"metrics/{name}.json", ours)
        paper_split = f"{name}/{HIDDEN}"
        click.echo(f"the paper: {paper_split} {named(paper_split, published[paper_split])}; page: {index}")
        if name == DAVIS:
            packed = submit_selections(selections, [cache], out / f"{name}_{split}.zip", root=davis)
            click.echo(f"for DAVIS's evaluation code: {packed}")

    if hidden:
        cache = tracks(YOUTUBE, HIDDEN)
        selections = predict(runs["videos"], [cache], [texts(YOUTUBE, HIDDEN)], out / f"selections/{YOUTUBE}-{HIDDEN}.zarr")
        masks = merge_masks(selections, [cache], out / f"masks/{YOUTUBE}")
        packed = submit(masks, YOUTUBE, out / f"{YOUTUBE}_{HIDDEN}.zip", root=youtube, split=HIDDEN)
        click.echo(f"for the benchmark's server: {packed}")


def stage_settings(page: Path, settings: tuple[str, ...], training: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of each training: those of ssa_images.toml or `page`, then `training`, then `settings`, in which a name may begin with
    that of the training."""
    given = parse_overrides(settings)
    own = {stage: given.pop(stage, {}) for stage in STAGES}
    values = {"images": read_toml(page.with_name("ssa_images.toml")), "videos": read_toml(page)}
    resolved = {stage: merge(merge(merge(values[stage], training), given), own[stage]) for stage in STAGES}
    for stage in STAGES:
        build(TrainSettings, resolved[stage], f"{page}: {stage}")
    return resolved


if __name__ == "__main__":
    run_command(ssa_single_object)
