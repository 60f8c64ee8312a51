"""SOLA on MeViS and Ref-YouTube-VOS together (Table 3 of the paper): one module, each benchmark's scores beside the paper's.

`python -m pipelines.sola_joint --mevis data/mevis --youtube data/ref-youtube-vos`. Completed steps are skipped, an interrupted run
continues.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.page import Page, checked_settings
from pipelines.rows.papers import row_of
from pipelines.rows.published import named
from pipelines.sola_models import Models, sola_models
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit
from rvos_select.training.train import train

TRAIN = {"mevis": "train", "ref-youtube-vos": "fit"}
OPEN = {"mevis": "valid_u", "ref-youtube-vos": "held_out"}
HIDDEN = "valid"
"""The paper's table is scored on valid of both, by the benchmarks' servers. valid_u has its ground truth; so has the twentieth of
Ref-YouTube-VOS's train that is held out here, and that the paper trains on."""


@click.command(cls=Page)
@click.option("--mevis", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option("--youtube", type=click.Path(path_type=Path), default=Path("data/ref-youtube-vos"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/sola_joint"), show_default=True)
@sola_models
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting that replaces that of sola_joint.toml; may repeat."
)
def sola_joint(mevis: Path, youtube: Path, out: Path, settings: tuple[str, ...], models: Models) -> None:
    """From both datasets' folders to a report on each, and to the benchmarks' zips where the splits `valid` are there."""
    page = Path(__file__).with_suffix(".toml")
    resolved = checked_settings(page, merge(read_toml(page), parse_overrides(settings)), settings)
    roots = {"mevis": mevis, "ref-youtube-vos": youtube}
    splits_of = {name: type(open_dataset(name, root, TRAIN[name])).splits(root) for name, root in roots.items()}
    hidden = [name for name in roots if HIDDEN in splits_of[name]]
    for name, root in roots.items():
        caches = out / "cache" / name
        models.extract(name, root, TRAIN[name], caches, trained=True)
        for split in [OPEN[name], *([HIDDEN] if name in hidden else [])]:
            models.extract(name, root, split, caches)

    def tracks(splits: dict[str, str], trained: bool = False) -> list[Path]:
        return [path for name, split in splits.items() for path in models.tracks(out / "cache" / name, split, trained)]

    def texts(splits: dict[str, str]) -> list[Path]:
        return [path for name, split in splits.items() for path in models.texts(out / "cache" / name, split)]

    run = out / "run"
    train(
        tracks(TRAIN, trained=True),
        texts(TRAIN),
        settings=resolved,
        valid_tracks=tracks(OPEN),
        valid_texts=texts(OPEN),
        out=run,
        resume=run.exists(),
    )

    published = row_of("sola", "table_3.sola").paper
    for name, root in roots.items():
        tested = {name: OPEN[name]}
        tested_tracks = tracks(tested)
        selections = predict(run, tested_tracks, texts(tested), out / f"selections/{name}-{OPEN[name]}.zarr")
        ours = evaluate_selections(selections, tested_tracks, root=root)
        scores = {f"ours, {name} {OPEN[name]}": ours, f"oracle, {name} {OPEN[name]}": oracle(tested_tracks)}
        index = report(run, selections, tested_tracks, out / f"report/{name}", root=root, rows=scores)
        show_scores(scores, out / f"metrics/{name}.json", ours)
        paper_split = f"{name}/{HIDDEN}"
        click.echo(f"the paper: {paper_split} {named(paper_split, published[paper_split])}; page: {index}")

    for name in hidden:
        tested = {name: HIDDEN}
        tested_tracks = tracks(tested)
        selections = predict(run, tested_tracks, texts(tested), out / f"selections/{name}-{HIDDEN}.zarr")
        masks = merge_masks(selections, tested_tracks, out / f"masks/{name}")
        packed = submit(masks, name, out / f"{name}_{HIDDEN}.zip", root=roots[name], split=HIDDEN)
        click.echo(f"for the benchmark's server: {packed}")


if __name__ == "__main__":
    run_command(sola_joint)
