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

from pipelines.page import Page, checked_settings
from pipelines.rows.papers import row_of
from pipelines.single_object import DAVIS, IMAGES, OPEN, YOUTUBE, Caches, dataset_options, score_benchmarks, submit_hidden
from pipelines.ssa_models import Models, ssa_models
from rvos_cache.cli import run_command
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train, trains_on

STAGES = {
    "images": dict.fromkeys(IMAGES, "train"),
    "videos": {YOUTUBE: "fit", **dict.fromkeys(IMAGES, "train-pseudo8")},
}
"""Training, in this order: dataset -> split. Pseudo-videos are as long as a clip."""


@click.command(cls=Page)
@dataset_options
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
    caches = Caches(out / "cache", roots, models.extraction)
    runs = {stage: out / "runs" / stage for stage in STAGES}
    caches.extract(list(STAGES.values()), trains_on(build(TrainSettings, resolved["images"], str(page)), runs["images"]))

    for stage, trained in STAGES.items():
        values = resolved[stage]
        if stage == "videos":
            values = {**values, "init": str(runs["images"])}
        train(
            [caches.tracks(name, split) for name, split in trained.items()],
            [caches.texts(name, split) for name, split in trained.items()],
            settings=build(TrainSettings, values, str(page)),
            valid_tracks=[caches.tracks(YOUTUBE, OPEN[YOUTUBE])],
            valid_texts=[caches.texts(YOUTUBE, OPEN[YOUTUBE])],
            out=runs[stage],
            resume=runs[stage].exists(),
        )

    published = row_of("ssa", "table_3.ssa").paper
    score_benchmarks(runs["videos"], caches, out, published)
    if caches.has_hidden:
        submit_hidden(runs["videos"], caches, out)


def stage_settings(page: Path, settings: tuple[str, ...], training: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of each training: those of ssa_images.toml or `page`, then `training`, then `settings`, in which a name may begin with
    that of the training."""
    given = parse_overrides(settings)
    own = {stage: given.pop(stage, {}) for stage in STAGES}
    values = {"images": read_toml(page.with_name("ssa_images.toml")), "videos": read_toml(page)}
    resolved = {stage: merge(merge(merge(values[stage], training), given), own[stage]) for stage in STAGES}
    for stage in STAGES:
        checked_settings(Path(f"{page}: {stage}"), resolved[stage])
    return resolved


if __name__ == "__main__":
    run_command(ssa_single_object)
