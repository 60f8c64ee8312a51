"""ReferDINO's second stage on moving shapes with a GroundingDINO trained on them: every step of the two stages on one page, on a CPU.

`python -m pipelines.referdino_shapes --out out/referdino_shapes`. Tracked queries of each sentence with masks of ReferDINO's decoder;
the temporal enhancer, GroundingDINO's own scores (no enhancer), the mean-cosine baseline, all tracks and the tracks' oracle, by what
a sentence needs. Completed steps are skipped, an interrupted training continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.gdino_shapes import KEEP, SHORT, train_gdino
from pipelines.shapes_scores import TRAIN, VALID, score, train_and_predict
from rvos_cache.cli import Resumable, run_command
from rvos_cache.extraction import extract_all
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_cache.shapes import write_shapes
from rvos_cache.store import text_path, tracks_path
from rvos_select.inference.predict import select_all

WITHOUT = {"config": {"temporal_layers": 0}, "epochs": 1}
"""Settings without enhancer: the box head alone is trained, and scores are GroundingDINO's own."""
BASELINE = {"selector": "mean-cosine", "config": {}, "batch": "video", "optim": {"lr": 5e-3, "schedule": "cosine", "warmup": 100}}
"""Settings of mean cosine that replace those of ReferDINO."""


@click.command(cls=Resumable)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/referdino_shapes"), show_default=True)
@click.option("--gdino", type=click.Path(path_type=Path), help="A folder of pipelines.gdino_shapes.  [default: train one]")
@click.option("--gdino-videos", default=300, show_default=True)
@click.option("--gdino-steps", default=2000, show_default=True)
@click.option("--videos", default=200, show_default=True, help="One fifth of them is held out.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that draw and extract.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting of ReferDINO that replaces that of referdino_shapes.toml; may repeat.",
)
def referdino_shapes(
    out: Path, gdino: Path | None, gdino_videos: int, gdino_steps: int, videos: int, jobs: int, settings: tuple[str, ...]
) -> None:
    """From frames to J&F on held-out videos."""
    root, caches = out / "data", out / "cache"
    if not (root / "valid_p/meta_expressions.json").exists():  # written last
        write_shapes(root, videos, 7, jobs=jobs)
    checkpoint = gdino or train_gdino(out / "gdino", gdino_videos, gdino_steps, 1e-3, 11)
    tracker = {"checkpoint": str(checkpoint), "masks": "head", "keep_ratio": KEEP, "short_side": SHORT, "frames_per_pass": 40}
    splits = (TRAIN, VALID)
    extract_all("mevis", root, splits=splits, tracker="gdino-queries", encoder="hashed", out=caches, overrides=tracker, jobs=jobs)
    tracks = {split: [tracks_path(caches, split, "gdino-queries")] for split in splits}
    texts = {split: [text_path(caches, split, "hashed")] for split in splits}

    page = Path(__file__).with_suffix(".toml")
    own = merge(read_toml(page), parse_overrides(settings))
    runs = {"referdino": own, "no_enhancer": merge(own, WITHOUT), "mean_cosine": {**own, **BASELINE}}
    selections = train_and_predict(runs, tracks, texts, out, page)
    selections["all_tracks"] = select_all(tracks[VALID], texts[VALID], out / "selections/all_tracks.zarr")

    kinds, index = score("referdino", selections, tracks[VALID], root, out)
    share = kinds["referdino"]["static"] / max(kinds["oracle"]["static"], 1e-9)
    click.echo(f"where looks suffice: {100 * share:.1f} % of the oracle; page: {index}")


if __name__ == "__main__":
    run_command(referdino_shapes)
