"""DMVS on moving shapes with a VITA trained on them: every step of the two stages on one page, on a CPU.

`python -m pipelines.dmvs_shapes --out out/dmvs_shapes`. It compares DMVS as in the paper, DMVS that selects among
VITA's own tracks (frozen masks), all of those tracks, and their oracle. Completed steps are skipped.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.page import check_folder, checked_settings
from pipelines.vita_shapes import LONG, SHORT, train_vita
from rvos_cache.cli import Resumable, run_command
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.shapes import write_shapes
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict, select_all
from rvos_select.reporting import report
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

SPLITS = ("train", "valid_u")
FROZEN = {"config": {"masks": "frozen", "mask_init": "random"}}


@click.command(cls=Resumable)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/dmvs_shapes"), show_default=True)
@click.option("--vita", type=click.Path(path_type=Path), help="A checkpoint of pipelines.vita_shapes.  [default: train one]")
@click.option("--vita-videos", default=800, show_default=True)
@click.option("--vita-steps", default=6000, show_default=True)
@click.option("--videos", default=800, show_default=True, help="One fifth of them is held out.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that draw and extract.")
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting that replaces that of dmvs_shapes.toml; may repeat."
)
def dmvs_shapes(
    out: Path, vita: Path | None, vita_videos: int, vita_steps: int, videos: int, jobs: int, settings: tuple[str, ...]
) -> None:
    """From frames to J&F on held-out videos."""
    page = Path(__file__).with_suffix(".toml")
    base = merge(read_toml(page), parse_overrides(settings))
    # What is wrong or missing is said before hours of training.
    checked_settings(page, base)
    check_folder("--vita", vita)
    root, caches = out / "data", out / "cache"
    if not root.exists():
        write_shapes(root, videos, 7, jobs=jobs)
    checkpoint = vita or train_vita(out / "vita", vita_videos, vita_steps, 5e-4, 11)
    tracker = {"checkpoint": str(checkpoint), "short_side": SHORT, "long_side": LONG, "profile": "exact", "max_tracks": 12}
    extract_all("mevis", root, splits=SPLITS, tracker="vita", encoder="hashed", out=caches, overrides=tracker, jobs=jobs)
    tracks = {split: [tracks_path(caches, split, "vita")] for split in SPLITS}
    texts = {split: [text_path(caches, split, "hashed")] for split in SPLITS}

    scores = {}
    for name, values in (("dmvs", base), ("frozen masks", merge(base, FROZEN))):
        run = out / "runs" / name.replace(" ", "_")
        train(
            tracks["train"],
            texts["train"],
            valid_tracks=tracks["valid_u"],
            valid_texts=texts["valid_u"],
            settings=build(TrainSettings, values, str(page)),
            out=run,
            resume=run.exists(),
        )
        selections = predict(run, tracks["valid_u"], texts["valid_u"], out / f"selections/{run.name}.zarr")
        scores[name] = evaluate_selections(selections, tracks["valid_u"], root=root)
    everything = select_all(tracks["valid_u"], texts["valid_u"], out / "selections/all_tracks.zarr")
    scores["all of VITA's tracks"] = evaluate_selections(everything, tracks["valid_u"], root=root)
    scores["oracle of VITA's tracks"] = oracle(tracks["valid_u"])
    index = report(out / "runs/dmvs", out / "selections/dmvs.zarr", tracks["valid_u"], out / "report", root=root, rows=scores)
    show_scores(scores, out / "metrics.json", scores["dmvs"])
    click.echo(f"page: {index}")


if __name__ == "__main__":
    run_command(dmvs_shapes)
