"""SSA's cached form on moving shapes with a CLIP trained on them: every step of the two stages on one page, on a CPU.

`python -m pipelines.ssa_shapes --out out/ssa_shapes`. Tracks of optical flow, features of CLIP pooled under them; SSA, CLIP without
training, the mean-cosine baseline, all tracks and the tracks' oracle, by what a sentence needs. Completed steps are skipped.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.clip_shapes import SHORT, train_clip
from pipelines.shapes_scores import show_kinds
from rvos_cache.cli import Resumable, run_command
from rvos_cache.exchange.pool_clip import pool_clip
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.shapes import write_shapes
from rvos_cache.store import pooled_path, text_path, tracks_path
from rvos_cache.system.files import write_json
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict, select_all
from rvos_select.reporting import report
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

TRAIN, VALID = "train", "valid_u"
BASELINE = {"selector": "mean-cosine", "config": {}, "batch": "video", "optim": {"lr": 5e-3, "schedule": "cosine", "warmup": 100}}
"""Settings of mean cosine that replace those of SSA; it reads the tracker's tokens, not CLIP's."""
ZERO_SHOT = {"clip-zero-shot": "softmax", "clip-zero-shot-several": "sigmoid"}
"""Row -> the `score` of CLIP without training: softmax selects one track, sigmoid several, as many sentences need."""


@click.command(cls=Resumable)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/ssa_shapes"), show_default=True)
@click.option("--clip", type=click.Path(path_type=Path), help="A folder of pipelines.clip_shapes.  [default: train one]")
@click.option("--clip-videos", default=800, show_default=True)
@click.option("--clip-steps", default=800, show_default=True)
@click.option("--videos", default=400, show_default=True, help="One fifth of them is held out.")
@click.option("--jobs", default=1, show_default=True, help="Processes that draw, extract and pool.")
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting of SSA that replaces that of ssa_shapes.toml; may repeat."
)
def ssa_shapes(
    out: Path, clip: Path | None, clip_videos: int, clip_steps: int, videos: int, jobs: int, settings: tuple[str, ...]
) -> None:
    """From frames to J&F on held-out videos."""
    root, caches = out / "data", out / "cache"
    if not (root / "valid_p/meta_expressions.json").exists():  # written last
        write_shapes(root, videos, 7, jobs=jobs)
    checkpoint = str(clip or train_clip(out / "clip", clip_videos, clip_steps, 2e-3, 11))
    words = {"checkpoint": checkpoint}
    extract_all("mevis", root, splits=(TRAIN, VALID), tracker="flow", encoder="clip", out=caches, text_overrides=words, jobs=jobs)
    tracks, texts = {}, {split: [text_path(caches, split, "clip")] for split in (TRAIN, VALID)}
    for split in (TRAIN, VALID):
        plain = tracks_path(caches, split, "flow")
        pool_clip(plain, overrides={"checkpoint": checkpoint, "short_side": SHORT}, root=root, jobs=jobs)
        tracks[split] = [Path(pooled_path(plain))]

    page = Path(__file__).with_suffix(".toml")
    values = read_toml(page)
    runs = {"ssa": merge(values, parse_overrides(settings)), "mean_cosine": {**values, **BASELINE}}
    selections = {name: out / f"selections/{name}.zarr" for name in (*runs, *ZERO_SHOT, "all_tracks")}
    for name, own in runs.items():
        run = out / "runs" / name
        train(
            tracks[TRAIN],
            texts[TRAIN],
            valid_tracks=tracks[VALID],
            valid_texts=texts[VALID],
            settings=build(TrainSettings, own, str(page)),
            out=run,
            resume=run.exists(),
        )
        predict(run, tracks[VALID], texts[VALID], selections[name])
    for name, score in ZERO_SHOT.items():
        config = {"clip": checkpoint, "score": score}
        predict(None, tracks[VALID], texts[VALID], selections[name], selector="clip-zero-shot", config=config)
    select_all(tracks[VALID], texts[VALID], selections["all_tracks"])

    scores = {name: evaluate_selections(path, tracks[VALID], root=root) for name, path in selections.items()}
    scores["oracle"] = oracle(tracks[VALID])
    index = report(out / "runs/ssa", selections["ssa"], tracks[VALID], out / "report", root=root, rows=scores)
    show_scores(scores, None, scores["ssa"])
    kinds = show_kinds(scores)
    write_json(
        out / "metrics.json",
        {name: {key: row[key] for key in ("j", "f", "jf")} for name, row in scores.items()} | {"kinds": kinds},
    )
    click.echo(f"page: {index}")


if __name__ == "__main__":
    run_command(ssa_shapes)
