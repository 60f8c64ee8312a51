"""ReferDINO's second stage on moving shapes with a GroundingDINO trained on them: every step of the two stages on one page, on a CPU.

`python -m pipelines.referdino_shapes --out out/referdino_shapes`. Tracked queries of each sentence with masks of ReferDINO's decoder;
the temporal enhancer, GroundingDINO's own scores (no enhancer), the mean-cosine baseline, all tracks and the tracks' oracle, by what
a sentence needs. Completed steps are skipped, an interrupted training continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.gdino_shapes import KEEP, SHORT, train_gdino
from pipelines.shapes_scores import show_kinds
from pipelines.ssa_shapes import TRAIN, VALID
from rvos_cache.cli import Resumable, run_command
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.shapes import write_shapes
from rvos_cache.store import text_path, tracks_path
from rvos_cache.system.files import write_json
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict, select_all
from rvos_select.reporting import report
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

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
@click.option("--jobs", default=1, show_default=True, help="Processes that draw and extract.")
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
    selections = {name: out / f"selections/{name}.zarr" for name in (*runs, "all_tracks")}
    for name, values in runs.items():
        run = out / "runs" / name
        train(
            tracks[TRAIN],
            texts[TRAIN],
            valid_tracks=tracks[VALID],
            valid_texts=texts[VALID],
            settings=build(TrainSettings, values, str(page)),
            out=run,
            resume=run.exists(),
        )
        predict(run, tracks[VALID], texts[VALID], selections[name])
    select_all(tracks[VALID], texts[VALID], selections["all_tracks"])

    scores = {name: evaluate_selections(path, tracks[VALID], root=root) for name, path in selections.items()}
    scores["oracle"] = oracle(tracks[VALID])
    index = report(out / "runs/referdino", selections["referdino"], tracks[VALID], out / "report", root=root, rows=scores)
    show_scores(scores, None, scores["referdino"])
    kinds = show_kinds(scores)
    write_json(
        out / "metrics.json",
        {name: {key: row[key] for key in ("j", "f", "jf")} for name, row in scores.items()} | {"kinds": kinds},
    )
    share = kinds["referdino"]["static"] / max(kinds["oracle"]["static"], 1e-9)
    click.echo(f"where looks suffice: {100 * share:.1f} % of the oracle; page: {index}")


if __name__ == "__main__":
    run_command(referdino_shapes)
