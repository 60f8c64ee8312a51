"""DeRVOS on moving shapes with a DVIS++ and a BEiT-3 trained on them: every step of the two stages on one page, on a CPU.

`python -m pipelines.dervos_shapes --out out/dervos_shapes`. It compares the full DeRVOS, two of its ablations, the mean-cosine
baseline on the same tokens, all of DVIS++'s tracks, and their oracle, by what a sentence needs. Completed steps are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.beit3_shapes import GRID, train_beit3
from pipelines.beit3_shapes import SIDE as BEIT3_SIDE
from pipelines.dvis_segmenter import SIDE
from pipelines.dvis_shapes import train_dvis
from pipelines.page import check_folder, checked_settings
from pipelines.shapes_scores import TRAIN, VALID, score, train_and_predict
from rvos_cache.cli import Resumable, run_command
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_all
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_cache.shapes import write_shapes
from rvos_cache.store import text_path, tracks_path
from rvos_select.inference.predict import select_all

TRACKER = {"side": SIDE, "pool": GRID, "max_tracks": 12}
"""The pooled mask features have as many cells as BEiT-3 has patches."""
FRAMES = {"square": BEIT3_SIDE, "resample": "bicubic"}
ROWS: dict[str, dict[str, Any]] = {
    "dervos": {},
    "cfma": {"config": {"mgis": False}},
    "words": {"config": {"understanding": "words"}},
}
"""Row -> its settings: the full model, without motion guidance, and the words of BEiT-3 without frames (as the row MU=BERT)."""
TITLES = {
    "dervos": "DeRVOS",
    "cfma": "CFMA alone",
    "words": "words alone",
    "mean_cosine": "mean cosine",
    "all_tracks": "all tracks",
    "oracle": "oracle",
}
"""What the rows are called in tables, as in README.md, but short: a terminal has 80 columns."""
BASELINE = {"selector": "mean-cosine", "config": {}, "batch": "video", "optim": {"lr": 5e-3, "schedule": "cosine", "warmup": 100}}
"""Settings of mean cosine that replace those of DeRVOS."""


@click.command(cls=Resumable)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dervos_shapes"), show_default=True)
@click.option("--dvis", type=click.Path(path_type=Path), help="A folder of pipelines.dvis_shapes.  [default: train one]")
@click.option("--dvis-videos", default=500, show_default=True, help="Of its segmenter.")
@click.option("--dvis-steps", default=3000, show_default=True, help="Of its segmenter.")
@click.option(
    "--track-videos", default=1200, show_default=True, help="Of its tracker and its refiner: others than --dvis-videos."
)
@click.option("--track-steps", default=3400, show_default=True, help="Of its tracker; its refiner has 1.75 times as many.")
@click.option("--beit3", type=click.Path(path_type=Path), help="A folder of pipelines.beit3_shapes.  [default: train one]")
@click.option("--beit3-videos", default=600, show_default=True)
@click.option("--beit3-steps", default=1500, show_default=True)
@click.option("--videos", default=800, show_default=True, help="One fifth of them is held out.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that draw and extract.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting of DeRVOS that replaces that of dervos_shapes.toml; may repeat.",
)
def dervos_shapes(
    out: Path,
    dvis: Path | None,
    dvis_videos: int,
    dvis_steps: int,
    track_videos: int,
    track_steps: int,
    beit3: Path | None,
    beit3_videos: int,
    beit3_steps: int,
    videos: int,
    jobs: int,
    settings: tuple[str, ...],
) -> None:
    """From frames to J&F on held-out videos."""
    page = Path(__file__).with_suffix(".toml")
    values = merge(read_toml(page), parse_overrides(settings))
    runs = {**{name: merge(values, own) for name, own in ROWS.items()}, "mean_cosine": {**values, **BASELINE}}
    # What is wrong or missing is said before hours of training.
    for name in ROWS:
        checked_settings(page, runs[name])
    check_folder("--dvis", dvis)
    check_folder("--beit3", beit3)

    root, caches = out / "data", out / "cache"
    if not (root / "valid_p/meta_expressions.json").exists():  # written last
        write_shapes(root, videos, 7, jobs=jobs)
    dvis = dvis or train_dvis(out / "dvis", dvis_videos, dvis_steps, track_videos, track_steps, 11)
    beit3 = beit3 or train_beit3(out / "beit3", beit3_videos, beit3_steps, 1e-3, 11)
    extract_all(
        "mevis",
        root,
        splits=(TRAIN, VALID),
        tracker="dvis",
        encoder="beit3",
        out=caches,
        overrides={"checkpoint": str(dvis), **TRACKER},
        text_overrides={"checkpoint": str(beit3)},
        also={"frames": FRAMES},
        jobs=jobs,
    )
    tracks = {split: [tracks_path(caches, split, name) for name in ("dvis", "frames")] for split in (TRAIN, VALID)}
    texts = {split: [text_path(caches, split, "beit3")] for split in (TRAIN, VALID)}

    try:
        selections = train_and_predict(runs, tracks, texts, out, page)
    except InputError as error:
        advice = "train DVIS++ longer, with a larger --dvis-steps and another --out"
        raise InputError(str(error).replace("extract with another tracker or other settings", advice)) from error
    selections["all_tracks"] = select_all(tracks[VALID], texts[VALID], out / "selections/all_tracks.zarr")

    _, index = score("dervos", selections, tracks[VALID], root, out, TITLES)
    click.echo(f"page: {index}")


if __name__ == "__main__":
    run_command(dervos_shapes)
