"""What the pages of Ref-YouTube-VOS and Ref-DAVIS17 share: the datasets and their splits, their caches, and both benchmarks' scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipelines.rows.published import named
from rvos_cache.datasets import open_dataset
from rvos_cache.extraction import Check, extract_all
from rvos_cache.store import text_path, tracks_path
from rvos_select.cli.tables import show_scores
from rvos_select.evaluation import benchmark_selections
from rvos_select.evaluation.oracle import oracle
from rvos_select.inference.predict import predict
from rvos_select.merging.merge import merge as merge_masks
from rvos_select.reporting import report
from rvos_select.submission import submit, submit_selections

YOUTUBE, DAVIS = "ref-youtube-vos", "ref-davis17"
IMAGES = ("refcoco", "refcoco+", "refcocog")
OPEN = {YOUTUBE: "held_out", DAVIS: "valid"}
HIDDEN = "valid"
"""The papers' rows of Ref-YouTube-VOS are scored on its valid, by the benchmark's server; the twentieth of train that `held_out`
names has its ground truth, and is not trained on here. Ref-DAVIS17's valid has its own, and is the papers' split."""


def dataset_options(page: Callable[..., None]) -> Callable[..., None]:
    """--youtube, --images and --davis: the folders of the datasets."""
    for name, folder, help_text in (
        ("--davis", "data/ref-davis17", None),
        ("--images", "data/refcoco", "RefCOCO, RefCOCO+, RefCOCOg."),
        ("--youtube", "data/ref-youtube-vos", None),
    ):
        page = click.option(name, type=click.Path(path_type=Path), default=Path(folder), show_default=True, help=help_text)(page)
    return page


@dataclass(frozen=True)
class Caches:
    """The caches of the datasets.

    folder: where they lie, by dataset; roots: dataset -> its folder; extraction: arguments of `extract_all`.
    """

    folder: Path
    roots: Mapping[str, Path]
    extraction: Mapping[str, Any]

    def extract(self, trained: Sequence[Mapping[str, str]], check: Check) -> None:
        """Extract the splits that are trained on (dataset -> split), those of OPEN, and HIDDEN where it is there.

        check: as in `extract_all`.
        """
        splits_of = {name: [splits[name] for splits in (*trained, OPEN) if name in splits] for name in self.roots}
        for name, splits in splits_of.items():
            # What is missing is said before hours of extraction.
            for split in splits:
                open_dataset(name, self.roots[name], split)
        for name, root in self.roots.items():
            hidden = [HIDDEN] if name == YOUTUBE and self.has_hidden else []
            extract_all(name, root, splits=[*splits_of[name], *hidden], out=self.folder / name, check=check, **self.extraction)

    @property
    def has_hidden(self) -> bool:
        """Whether the split HIDDEN of Ref-YouTube-VOS is there."""
        root = self.roots[YOUTUBE]
        return HIDDEN in type(open_dataset(YOUTUBE, root, OPEN[YOUTUBE])).splits(root)

    def tracks(self, name: str, split: str) -> Path:
        """The tracks cache of a split."""
        return tracks_path(self.folder / name, split, self.extraction["tracker"])

    def texts(self, name: str, split: str) -> Path:
        """The text cache of a split."""
        return text_path(self.folder / name, split, self.extraction["encoder"])


def score_benchmarks(
    run: Path, caches: Caches, out: Path, published: Mapping[str, Sequence[float]], oracles: Collection[str] = ()
) -> None:
    """Predict, score and report the splits of OPEN, and write Ref-DAVIS17's zip.

    published: dataset/split -> J&F, J, F of the paper; oracles: the datasets whose tracks' oracle is a row.
    """
    for name, split in OPEN.items():
        cache, root = caches.tracks(name, split), caches.roots[name]
        selections = predict(run, [cache], [caches.texts(name, split)], out / f"selections/{name}-{split}.zarr")
        ours = benchmark_selections(selections, [cache], {}, root=root)
        scores = {f"ours, {name} {split}": ours}
        if name in oracles:
            scores[f"oracle, {name} {split}"] = oracle([cache])
        index = report(run, selections, [cache], out / f"report/{name}", root=root, rows=scores)
        show_scores(scores, out / f"metrics/{name}.json", ours)
        paper_split = f"{name}/{HIDDEN}"
        click.echo(f"the paper: {paper_split} {named(paper_split, published[paper_split])}; page: {index}")
        if name == DAVIS:
            packed = submit_selections(selections, [cache], out / f"{name}_{split}.zip", root=root)
            click.echo(f"for DAVIS's evaluation code: {packed}")


def submit_hidden(run: Path, caches: Caches, out: Path) -> None:
    """Predict the split HIDDEN of Ref-YouTube-VOS, and write the zip for its server."""
    cache, root = caches.tracks(YOUTUBE, HIDDEN), caches.roots[YOUTUBE]
    selections = predict(run, [cache], [caches.texts(YOUTUBE, HIDDEN)], out / f"selections/{YOUTUBE}-{HIDDEN}.zarr")
    masks = merge_masks(selections, [cache], out / f"masks/{YOUTUBE}")
    packed = submit(masks, YOUTUBE, out / f"{YOUTUBE}_{HIDDEN}.zip", root=root, split=HIDDEN)
    click.echo(f"for the benchmark's server: {packed}")
