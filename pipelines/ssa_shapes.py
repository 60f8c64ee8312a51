"""SSA's cached form on moving shapes with a CLIP trained on them: every step of the two stages on one page, on a CPU.

`python -m pipelines.ssa_shapes --out out/ssa_shapes`. Tracks of optical flow, features of CLIP pooled under them; SSA, CLIP without
training, the mean-cosine baseline, all tracks and the tracks' oracle, by what a sentence needs. Completed steps are skipped.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.clip_shapes import SHORT, train_clip
from pipelines.page import check_folder, checked_settings
from pipelines.shapes_scores import TRAIN, VALID, score, train_and_predict
from rvos_cache.cli import Resumable, run_command
from rvos_cache.exchange.pool_clip import pool_clip
from rvos_cache.extraction import extract_all
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_cache.shapes import write_shapes
from rvos_cache.store import pooled_path, text_path, tracks_path
from rvos_select.inference.predict import predict, select_all

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
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that draw, extract and pool.")
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting of SSA that replaces that of ssa_shapes.toml; may repeat."
)
def ssa_shapes(
    out: Path, clip: Path | None, clip_videos: int, clip_steps: int, videos: int, jobs: int, settings: tuple[str, ...]
) -> None:
    """From frames to J&F on held-out videos."""
    page = Path(__file__).with_suffix(".toml")
    values = read_toml(page)
    runs = {"ssa": merge(values, parse_overrides(settings)), "mean_cosine": {**values, **BASELINE}}
    # What is wrong or missing is said before hours of training.
    checked_settings(page, runs["ssa"])
    check_folder("--clip", clip)
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

    selections = train_and_predict(runs, tracks, texts, out, page)
    for name, kind in ZERO_SHOT.items():
        config, path = {"clip": checkpoint, "score": kind}, out / f"selections/{name}.zarr"
        selections[name] = predict(None, tracks[VALID], texts[VALID], path, selector="clip-zero-shot", config=config)
    selections["all_tracks"] = select_all(tracks[VALID], texts[VALID], out / "selections/all_tracks.zarr")

    _, index = score("ssa", selections, tracks[VALID], root, out)
    click.echo(f"page: {index}")


if __name__ == "__main__":
    run_command(ssa_shapes)
