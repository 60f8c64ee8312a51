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
from pipelines.page import Page, checked_settings
from pipelines.rows.papers import row_of
from pipelines.single_object import DAVIS, IMAGES, OPEN, YOUTUBE, Caches, dataset_options, score_benchmarks, submit_hidden
from rvos_cache.cli import run_command
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_select.training.train import train, trains_on

TRAINED = {YOUTUBE: "fit", **dict.fromkeys(IMAGES, "train-pseudo10")}
"""Pseudo-videos are as long as a clip."""


@click.command(cls=Page)
@dataset_options
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
    resolved = checked_settings(page, merge(read_toml(page), parse_overrides(settings)), settings)
    roots = {YOUTUBE: youtube, **dict.fromkeys(IMAGES, images), DAVIS: davis}
    caches = Caches(out / "cache", roots, models)
    run = out / "run"
    caches.extract([TRAINED], trains_on(resolved, run))

    train(
        [caches.tracks(name, split) for name, split in TRAINED.items()],
        [caches.texts(name, split) for name, split in TRAINED.items()],
        settings=resolved,
        valid_tracks=[caches.tracks(YOUTUBE, OPEN[YOUTUBE])],
        valid_texts=[caches.texts(YOUTUBE, OPEN[YOUTUBE])],
        out=run,
        resume=run.exists(),
    )

    published = row_of("dmvs", "table_2.dmvs").paper
    # Ref-DAVIS17's objects have no oracle: each object's prediction is the best of its annotator's expressions.
    score_benchmarks(run, caches, out, published, oracles=[YOUTUBE])
    if caches.has_hidden:
        submit_hidden(run, caches, out)


if __name__ == "__main__":
    run_command(dmvs_single_object)
