"""SOLA trained on MeViS alone, scored on Ref-YouTube-VOS and Ref-DAVIS17 (Table 2 of the paper), beside the paper's numbers.

`python -m pipelines.sola_zero_shot --mevis data/mevis --youtube data/ref-youtube-vos --davis data/ref-davis17`, with `--run
out/sola_mevis/run` where the module of Table 1 is trained already. Completed steps are skipped, an interrupted run
continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.page import Page, checked_settings
from pipelines.rows.papers import row_of
from pipelines.rows.published import named
from pipelines.sola_models import Models, sola_models
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import benchmark_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit, submit_selections
from rvos_select.training.train import train

TRAINED, VALIDATED = "train", "valid_u"
OPEN = {"ref-youtube-vos": "held_out", "ref-davis17": "valid"}
HIDDEN = "valid"
"""The paper's row of Ref-YouTube-VOS is scored on its valid, by the benchmark's server; the twentieth of train that `held_out`
names has its ground truth and is not trained on either. Ref-DAVIS17's valid has its own, and is the paper's split."""


@click.command(cls=Page)
@click.option("--mevis", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option("--youtube", type=click.Path(path_type=Path), default=Path("data/ref-youtube-vos"), show_default=True)
@click.option("--davis", type=click.Path(path_type=Path), default=Path("data/ref-davis17"), show_default=True)
@click.option("--run", "trained", type=click.Path(path_type=Path), help="A run on MeViS.  [default: trained first]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/sola_zero_shot"), show_default=True)
@sola_models
@click.option(
    "--set", "settings", multiple=True, metavar="K=V", help="A setting that replaces that of sola_zero_shot.toml; may repeat."
)
def sola_zero_shot(
    mevis: Path,
    youtube: Path,
    davis: Path,
    trained: Path | None,
    out: Path,
    settings: tuple[str, ...],
    models: Models,
) -> None:
    """From the three datasets' folders to a report on each dataset that was not trained on, and to the zips of their benchmarks."""
    roots = {"ref-youtube-vos": youtube, "ref-davis17": davis}
    # What is missing is said before hours of extraction.
    for name, root in roots.items():
        open_dataset(name, root, OPEN[name])
    if trained is None:
        open_dataset("mevis", mevis, TRAINED)
    page = Path(__file__).with_suffix(".toml")
    resolved = checked_settings(page, merge(read_toml(page), parse_overrides(settings)), settings)
    run = trained or out / "run"
    if trained is None:
        caches = out / "cache/mevis"
        models.extract("mevis", mevis, TRAINED, caches, trained=True)
        models.extract("mevis", mevis, VALIDATED, caches)
        train(
            models.tracks(caches, TRAINED, trained=True),
            models.texts(caches, TRAINED),
            settings=resolved,
            valid_tracks=models.tracks(caches, VALIDATED),
            valid_texts=models.texts(caches, VALIDATED),
            out=run,
            resume=run.exists(),
        )

    published = row_of("sola", "table_2.sola").paper
    hidden = HIDDEN in type(open_dataset("ref-youtube-vos", youtube, OPEN["ref-youtube-vos"])).splits(youtube)
    for name, split in OPEN.items():
        caches = out / "cache" / name
        models.extract(name, roots[name], split, caches)
        tracks = models.tracks(caches, split)
        selections = predict(run, tracks, models.texts(caches, split), out / f"selections/{name}-{split}.zarr")
        scores = _scores(name, selections, tracks, roots[name])
        index = report(run, selections, tracks, out / f"report/{name}", root=roots[name], rows=scores)
        show_scores(scores, out / f"metrics/{name}.json", next(iter(scores.values())))
        paper_split = f"{name}/{HIDDEN}"
        click.echo(f"the paper: {paper_split} {named(paper_split, published[paper_split])}; page: {index}")
        if name == "ref-davis17":
            packed = submit_selections(selections, tracks, out / f"{name}_{split}.zip", root=roots[name])
            click.echo(f"for DAVIS's evaluation code: {packed}")

    if hidden:
        name, caches = "ref-youtube-vos", out / "cache/ref-youtube-vos"
        models.extract(name, youtube, HIDDEN, caches)
        tracks = models.tracks(caches, HIDDEN)
        selections = predict(run, tracks, models.texts(caches, HIDDEN), out / f"selections/{name}-{HIDDEN}.zarr")
        masks = merge_masks(selections, tracks, out / f"masks/{name}")
        packed = submit(masks, name, out / f"{name}_{HIDDEN}.zip", root=youtube, split=HIDDEN)
        click.echo(f"for the benchmark's server: {packed}")


def _scores(name: str, selections: Path, tracks: list[Path], root: Path) -> dict[str, dict[str, Any]]:
    """The rows of a dataset's table, ours first. Ref-DAVIS17's objects have no oracle, but a stricter score."""
    ours = benchmark_selections(selections, tracks, {}, root=root)
    if name == "ref-davis17":
        return {f"ours, {name}": ours, "ours, strict": benchmark_selections(selections, tracks, {"strict": True}, root=root)}
    return {f"ours, {name}": ours, f"oracle, {name}": oracle(tracks)}


if __name__ == "__main__":
    run_command(sola_zero_shot)
