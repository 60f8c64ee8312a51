"""SOLA on moving shapes: every step of the two stages on one page, on a CPU, in minutes.

`make demo` runs this page. Data, caches, runs and the report lie under --out; a step that is done is not done again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from rvos_cache.cli import Resumable, run_command
from rvos_cache.exchange.mirror import mirror
from rvos_cache.extraction import extract_all, extract_text
from rvos_cache.settings import build, merge, read_toml
from rvos_cache.shapes import write_shapes
from rvos_cache.store import text_path, tracks_path
from rvos_cache.system.files import write_json
from rvos_cache.text import TEXT_ENCODERS
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import Scope, evaluate_pngs, evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict, select_all
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

VIDEOS, SEED = 800, 7
WORDS: dict[str, dict[str, Any]] = {"minilm": {"layers": "first_last"}}
"""Encoder -> its settings here. The last layer alone tells "left" from "right" too little for so small a module."""
TRAINING: dict[str, dict[str, Any]] = {"minilm": {"epochs": 9, "config": {"align_width": 128}}}
"""Encoder -> settings of SOLA that its words need: 768 channels are projected to 128, and learned in more epochs."""


@click.command(cls=Resumable)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@click.option("--videos", default=VIDEOS, show_default=True, help="One fifth of them is held out.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes that draw, extract and score.")
@click.option("--encoder", type=click.Choice(list(TEXT_ENCODERS)), default="hashed", show_default=True)
def demo(out: Path, videos: int, jobs: int, encoder: str) -> None:
    """From frames to merged masks, with SOLA's selector, the mean-cosine baseline, all tracks and the oracle."""
    clock = Clock(out / "seconds.json")
    words = WORDS.get(encoder, {})
    root, caches = out / "data", out / "cache"
    # valid_p has the videos of valid_u with other sentences about the same objects.
    valid, paraphrased = "valid_u", "valid_p"
    splits = ("train", "train-mirror", valid, paraphrased)
    tracks = {split: tracks_path(caches, split, "flow") for split in splits}
    texts = {split: text_path(caches, split, encoder) for split in splits}

    with clock("shapes"):
        if not (root / paraphrased / "meta_expressions.json").exists():  # written last
            write_shapes(root, videos, SEED, jobs=jobs)
    with clock("extract"):
        extract_all(
            "mevis", root, splits=("train", valid, paraphrased), encoder=encoder, out=caches, text_overrides=words, jobs=jobs
        )
        # The training split seen in a mirror, from its cache: twice the sentences without tracking again.
        mirror(tracks["train"], tracks["train-mirror"], jobs)
        extract_text("mevis", root, "train-mirror", encoder, texts["train-mirror"], overrides=words)

    base = read_toml(Path(__file__).with_suffix(".toml"))
    runs = {"sola": out / "runs/sola", "mean_cosine": out / "runs/mean_cosine"}
    for name, run in runs.items():
        with clock(f"train {name}"):
            values = merge(base, {"selector": name.replace("_", "-")})
            if name == "sola":
                values = merge(values, TRAINING.get(encoder, {}))
            else:
                # The baseline's own settings; the same labels, epochs and batches, and the rate that suits it best.
                values = {**values, "config": {}, "optim": {"lr": 5e-3, "schedule": "cosine", "warmup": 100}}
            settings = build(TrainSettings, values, "pipelines/sola_shapes.toml")
            train_tracks, train_texts = ([paths["train"], paths["train-mirror"]] for paths in (tracks, texts))
            train(
                train_tracks,
                train_texts,
                settings=settings,
                valid_tracks=[tracks[valid]],
                valid_texts=[texts[valid]],
                out=run,
                resume=run.exists(),
            )

    paraphrases = {name: f"{name}_paraphrases" for name in runs}
    selections = {name: out / f"selections/{name}.zarr" for name in (*runs, "all_tracks", *paraphrases.values())}
    with clock("predict"):
        for name, run in runs.items():
            predict(run, [tracks[valid]], [texts[valid]], selections[name])
            predict(run, [tracks[paraphrased]], [texts[paraphrased]], selections[paraphrases[name]])
        select_all([tracks[valid]], [texts[valid]], selections["all_tracks"])
    with clock("merge"):
        merge_masks(selections["sola"], [tracks[valid]], out / "masks")
    with clock("evaluate"):
        scores = {"sola": evaluate_pngs("mevis", root, valid, out / "masks", scope=Scope(processes=jobs))}
        split_of = {"mean_cosine": valid, "all_tracks": valid, **dict.fromkeys(paraphrases.values(), paraphrased)}
        for name, split in split_of.items():
            scores[name] = evaluate_selections(selections[name], [tracks[split]], root=root, scope=Scope(processes=jobs))
        scores["oracle"] = oracle([tracks[valid]])

    with clock("report"):
        page = report(runs["sola"], selections["sola"], [tracks[valid]], out / "report", root=root, rows=scores)

    metrics: dict[str, Any] = {name: {key: row[key] for key in ("j", "f", "jf")} for name, row in scores.items()}
    metrics["encoder"] = encoder
    metrics["motion_only"] = {name: scores[name]["kinds"]["motion"]["jf"] for name in (*runs, *paraphrases.values())}
    metrics["motion_only_expressions"] = scores["sola"]["kinds"]["motion"]["count"]
    metrics["seconds"] = clock.seconds
    write_json(out / "metrics.json", metrics)
    show_scores(scores, None, scores["sola"])
    motion = ", ".join(f"{name} {100 * jf:.1f}" for name, jf in metrics["motion_only"].items())
    click.echo(f"J&F on the {metrics['motion_only_expressions']} expressions that only motion tells apart: {motion}")
    click.echo(f"{sum(clock.seconds.values()):.0f} s of work; metrics: {out / 'metrics.json'}; page: {page}")


class Clock:
    """Seconds of each step, kept over runs: a step that was done before keeps the time it took then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        click.echo(f"== {step}")
        start = time.perf_counter()
        yield
        spent = round(time.perf_counter() - start, 1)
        self.seconds[step] = max(spent, self.seconds.get(step, 0.0))
        write_json(self.path, self.seconds)


if __name__ == "__main__":
    run_command(demo)
