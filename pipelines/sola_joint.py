"""SOLA on MeViS and Ref-YouTube-VOS together (Table 3 of the paper): one module, each benchmark's scores beside the paper's.

`python -m pipelines.sola_joint --mevis data/mevis --youtube data/ref-youtube-vos`. Completed steps are skipped, an interrupted run
continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.rows.papers import row_of
from pipelines.rows.published import named
from rvos_cache.cli import Resumable, run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

TRAIN = {"mevis": "train", "ref-youtube-vos": "fit"}
OPEN = {"mevis": "valid_u", "ref-youtube-vos": "held_out"}
HIDDEN = "valid"
"""The paper's table is scored on valid of both, by the benchmarks' servers. valid_u has its ground truth; so has the twentieth of
Ref-YouTube-VOS's train that is held out here, and that the paper trains on."""


@click.command(cls=Resumable)
@click.option("--mevis", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option("--youtube", type=click.Path(path_type=Path), default=Path("data/ref-youtube-vos"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/sola_joint"), show_default=True)
@click.option("--tracker", default="flow", show_default=True, help="Name in TRACKERS, or package.module:Class.")
@click.option("--encoder", default="roberta", show_default=True, help="Name in TEXT_ENCODERS, or package.module:Class.")
@click.option("--jobs", default=1, show_default=True, help="Processes that extract.")
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting that replaces that of sola_joint.toml; may repeat."
)
def sola_joint(mevis: Path, youtube: Path, out: Path, tracker: str, encoder: str, jobs: int, settings: tuple[str, ...]) -> None:
    """From both datasets' folders to a report on each, and to the benchmarks' zips where the splits `valid` are there."""
    roots = {"mevis": mevis, "ref-youtube-vos": youtube}
    splits_of = {name: type(open_dataset(name, root, TRAIN[name])).splits(root) for name, root in roots.items()}
    hidden = [name for name in roots if HIDDEN in splits_of[name]]
    for name, root in roots.items():
        splits = [TRAIN[name], OPEN[name], *([HIDDEN] if name in hidden else [])]
        extract_all(name, root, splits=splits, tracker=tracker, encoder=encoder, out=out / "cache" / name, jobs=jobs)

    def tracks(name: str, split: str) -> Path:
        return tracks_path(out / "cache" / name, split, tracker)

    def texts(name: str, split: str) -> Path:
        return text_path(out / "cache" / name, split, encoder)

    run = out / "run"
    page = Path(__file__).with_suffix(".toml")
    resolved = build(TrainSettings, merge(read_toml(page), parse_overrides(settings)), str(page))
    train(
        [tracks(name, TRAIN[name]) for name in roots],
        [texts(name, TRAIN[name]) for name in roots],
        settings=resolved,
        valid_tracks=[tracks(name, OPEN[name]) for name in roots],
        valid_texts=[texts(name, OPEN[name]) for name in roots],
        out=run,
        resume=run.exists(),
    )

    published = row_of("sola", "table_3.sola").paper
    for name, root in roots.items():
        cache = tracks(name, OPEN[name])
        selections = predict(run, [cache], [texts(name, OPEN[name])], out / f"selections/{name}-{OPEN[name]}.zarr")
        ours = evaluate_selections(selections, [cache], root=root)
        scores = {f"ours, {name} {OPEN[name]}": ours, f"oracle, {name} {OPEN[name]}": oracle([cache])}
        index = report(run, selections, [cache], out / f"report/{name}", root=root, rows=scores)
        show_scores(scores, out / f"metrics/{name}.json", ours)
        paper_split = f"{name}/{HIDDEN}"
        click.echo(f"the paper: {paper_split} {named(paper_split, published[paper_split])}; page: {index}")

    for name in hidden:
        cache = tracks(name, HIDDEN)
        selections = predict(run, [cache], [texts(name, HIDDEN)], out / f"selections/{name}-{HIDDEN}.zarr")
        masks = merge_masks(selections, [cache], out / f"masks/{name}")
        packed = submit(masks, name, out / f"{name}_{HIDDEN}.zip", root=roots[name], split=HIDDEN)
        click.echo(f"for the benchmark's server: {packed}")


if __name__ == "__main__":
    run_command(sola_joint)
