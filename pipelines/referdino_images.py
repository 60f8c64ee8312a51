"""ReferDINO on A2D-Sentences and JHMDB-Sentences (Table 1): one module, each benchmark's scores beside the paper's.

`python -m pipelines.referdino_images --a2d data/a2d-sentences --jhmdb data/jhmdb-sentences` trains stage two on a frozen
GroundingDINO whose boxes SAM 2 draws. The published models see one frame at a time; here a track has one score in the whole video, so
no number can be compared with the paper's. Every track of a scored frame is a detection. Completed steps are skipped, an interrupted
run continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.referdino_models import Models, published_row, published_scores, referdino_models, scores
from rvos_cache.cli import Resumable, run_command
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import benchmark_selections
from rvos_select.inference.predict import predict
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

A2D, JHMDB = "a2d-sentences", "jhmdb-sentences"
TRAIN, TEST = "train", "test"
MAIN = "table_1_benchmarks.referdino_t"


@click.command(cls=Resumable)
@click.option("--a2d", type=click.Path(path_type=Path), default=Path("data/a2d-sentences"), show_default=True)
@click.option("--jhmdb", type=click.Path(path_type=Path), default=Path("data/jhmdb-sentences"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/referdino_images"), show_default=True)
@referdino_models
@click.option("--row", default=MAIN, show_default=True, help="Of papers/referdino.toml.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of referdino_images.toml and of the row; may repeat.",
)
def referdino_images(a2d: Path, jhmdb: Path, out: Path, row: str, settings: tuple[str, ...], models: Models) -> None:
    """From the datasets' folders to the scores of each benchmark."""
    page = Path(__file__).with_suffix(".toml")
    if models.imported is not None:
        raise InputError(
            "--imported: the released weights of A2D-Sentences have an enhancer that was never trained, which videos of several frames "
            "would run; leave it out"
        )
    published = published_row(row, A2D, models)
    resolved = build(TrainSettings, merge(read_toml(page), parse_overrides([*published["set"], *settings])), str(page))

    caches, extraction = out / "cache" / models.name(published), models.extraction(published)
    roots = {A2D: a2d, JHMDB: jhmdb}
    extract_all(A2D, a2d, splits=[TRAIN, TEST], out=caches / A2D, **extraction)
    extract_all(JHMDB, jhmdb, splits=[TEST], out=caches / JHMDB, **extraction)

    def tracks(name: str, split: str) -> Path:
        return tracks_path(caches / name, split, extraction["tracker"])

    def texts(name: str, split: str) -> Path:
        return text_path(caches / name, split, extraction["encoder"])

    run = out / row / "run"
    train([tracks(A2D, TRAIN)], [texts(A2D, TRAIN)], settings=resolved, out=run, resume=run.exists())

    for name, root in roots.items():
        cache = tracks(name, TEST)
        selections = predict(run, [cache], [texts(name, TEST)], out / row / f"selections/{name}.zarr")
        ours = benchmark_selections(selections, [cache], {}, root=root)
        show_scores({f"ours, {name}": ours}, out / row / f"metrics/{name}.json", ours)
        click.echo(f"the paper, {name}: {published_scores(scores(row, published, name) or [], ('mAP', 'oIoU', 'mIoU'))}")


if __name__ == "__main__":
    run_command(referdino_images)
