"""SSA on MeViS (Tables 1, 2 and 4 to 7 of the paper): every step of the two stages on one page, the paper's numbers beside ours.

`python -m pipelines.ssa_mevis --root data/mevis --clip CLIP --init COCO.pth`, where `rvos-cache convert-clip` wrote CLIP;
`--row table_7.without_ensemble` for another row than the main one. Completed steps are skipped, an interrupted run
continues; all rows share their caches.
"""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.page import Page, checked_settings
from pipelines.rows.papers import row_of
from pipelines.rows.published import published_line
from pipelines.ssa_models import Models, ssa_models
from rvos_cache.cli import run_command
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import extract_all
from rvos_cache.settings import merge, parse_overrides, read_toml
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import evaluate_selections
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.merging.policy import PolicyOptions
from rvos_select.reporting import report
from rvos_select.submission import submit
from rvos_select.training.train import train, trains_on

OPEN, HIDDEN = "valid_u", "valid"
"""MeViS publishes the ground truth of valid_u; the tables are scored on valid by its server, except one column of the first."""
MAIN = "table_1.val_u"
YOUTUBE = "ref-youtube-vos"
THRESHOLDS = (0.3, 0.4, 0.5, 0.6)
"""Swept on valid_u; the released code's is 0.5."""


@click.command(cls=Page)
@click.option("--root", type=click.Path(path_type=Path), default=Path("data/mevis"), show_default=True)
@click.option(
    "--youtube",
    type=click.Path(path_type=Path),
    default=Path("data/ref-youtube-vos"),
    show_default=True,
    help="For the rows that are trained on it too.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/ssa_mevis"), show_default=True)
@ssa_models
@click.option("--row", default=MAIN, show_default=True, help="Of papers/ssa.toml.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A setting that replaces that of ssa_mevis.toml and of the row; may repeat.",
)
def ssa_mevis(root: Path, youtube: Path, out: Path, row: str, settings: tuple[str, ...], models: Models) -> None:
    """From MeViS's folders to a report on valid_u, and to the benchmark's zip where the split `valid` is there."""
    page = Path(__file__).with_suffix(".toml")
    published = row_of("ssa", row)
    values = merge(merge(read_toml(page), models.training), parse_overrides([*published.plain_set, *settings]))
    resolved = checked_settings(page, values, settings)

    trained = {"mevis": root, **({YOUTUBE: youtube} if any(split.startswith(YOUTUBE) for split in published.train) else {})}
    for name, folder in trained.items():
        # What is missing is said before hours of extraction.
        open_dataset(name, folder, "train")
    caches = {"mevis": out / "cache/mevis", YOUTUBE: out / f"cache/{YOUTUBE}"}
    splits = type(open_dataset("mevis", root, OPEN)).splits(root)
    run, selections_folder = out / row / "run", out / row / "selections"
    extract_all("mevis", root, splits=splits, out=caches["mevis"], check=trains_on(resolved, run), **models.extraction)
    if YOUTUBE in trained:
        extract_all(YOUTUBE, youtube, splits=["train"], out=caches[YOUTUBE], **models.extraction)

    def tracks(split: str, name: str = "mevis") -> Path:
        return tracks_path(caches[name], split, models.extraction["tracker"])

    def texts(split: str, name: str = "mevis") -> Path:
        return text_path(caches[name], split, models.extraction["encoder"])

    train(
        [tracks("train", name) for name in trained],
        [texts("train", name) for name in trained],
        settings=resolved,
        valid_tracks=[tracks(OPEN)],
        valid_texts=[texts(OPEN)],
        out=run,
        resume=run.exists(),
    )

    selections = predict(run, [tracks(OPEN)], [texts(OPEN)], selections_folder / f"{OPEN}.zarr")
    ours = evaluate_selections(selections, [tracks(OPEN)], root=root)
    scores = {f"{row}, {OPEN}": ours}
    for threshold in THRESHOLDS:
        scores[f"threshold {threshold}"] = evaluate_selections(
            selections, [tracks(OPEN)], root=root, policy=PolicyOptions(threshold)
        )
    index = report(run, selections, [tracks(OPEN)], out / row / "report", root=root, rows=scores)
    show_scores(scores, out / row / "metrics.json", ours)
    click.echo(f"{published_line(published.paper)}; page: {index}")

    if HIDDEN in splits:
        selections = predict(run, [tracks(HIDDEN)], [texts(HIDDEN)], selections_folder / f"{HIDDEN}.zarr")
        masks = merge_masks(selections, [tracks(HIDDEN)], out / row / "masks")
        zipped = submit(masks, "mevis", out / row / "mevis_valid.zip", root=root, split=HIDDEN)
        click.echo(f"for the benchmark's server: {zipped}")


if __name__ == "__main__":
    run_command(ssa_mevis)
