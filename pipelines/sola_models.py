"""The frozen models of SOLA's tables, and the options that say which."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rvos_cache.cli.run import print_reports
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_all
from rvos_cache.settings import merge, parse_overrides
from rvos_cache.store import text_path, tracks_path

TRAIN: dict[str, dict[str, Any]] = {"sam2-gt": {}, "sam2-grid": {}}
TEST: dict[str, dict[str, Any]] = {"sam2-grid": {"prompt_every": "half"}, "sam2-box": {}}
"""Trackers and their settings: training reads ground-truth and grid tracks, evaluation grid and box tracks. Source: SOLA's code."""


@dataclass(frozen=True)
class Models:
    """train, test: tracker -> its settings; encoder: of the words; jobs: processes that extract."""

    train: Mapping[str, Mapping[str, Any]]
    test: Mapping[str, Mapping[str, Any]]
    encoder: str
    text_overrides: Mapping[str, Any]
    jobs: int

    def extract(self, dataset: str, root: Path, split: str, caches: Path, trained: bool = False) -> None:
        """The tracks and words of a split, below `caches`. trained: by the trackers of training."""
        for tracker, settings in self._trackers(trained).items():
            print_reports(
                extract_all(
                    dataset, root, splits=[split], tracker=tracker, encoder=self.encoder, out=caches, overrides=settings,
                    text_overrides=self.text_overrides, jobs=self.jobs,
                )
            )  # fmt: skip

    def tracks(self, caches: Path, split: str, trained: bool = False) -> list[Path]:
        """The tracks caches of a split."""
        return [tracks_path(caches, split, tracker) for tracker in self._trackers(trained)]

    def texts(self, caches: Path, split: str) -> list[Path]:
        """The text cache of a split."""
        return [text_path(caches, split, self.encoder)]

    def _trackers(self, trained: bool) -> Mapping[str, Mapping[str, Any]]:
        return self.train if trained else self.test


def sola_models(page: Callable[..., None]) -> Callable[..., None]:
    """--tracker, --tracker-set, --encoder, --text-set and --jobs, which the page takes as one argument, `models`."""

    @click.option(
        "--tracker",
        help="One tracker for all splits, a name in TRACKERS or package.module:Class.  [default: sam2-gt and sam2-grid to train, "
        "sam2-grid and sam2-box to test, as in SOLA]",
    )
    @click.option("--tracker-set", multiple=True, metavar="TRACKER.K=V", help="A setting of a tracker, e.g. sam2-grid.batch=8.")
    @click.option("--encoder", default="roberta", show_default=True, help="Name in TEXT_ENCODERS, or package.module:Class.")
    @click.option("--text-set", multiple=True, metavar="K=V", help="A setting of the encoder.")
    @click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that extract.")
    @functools.wraps(page)
    def with_models(
        *args: Any,
        tracker: str | None,
        tracker_set: tuple[str, ...],
        encoder: str,
        text_set: tuple[str, ...],
        jobs: int,
        **others: Any,
    ) -> None:
        train, test = (TRAIN, TEST) if tracker is None else ({tracker: {}}, {tracker: {}})
        own: dict[str, list[str]] = {name: [] for name in {**train, **test}}
        for text in tracker_set:
            # The longest name first: the name of a class may have dots.
            name = next((name for name in sorted(own, key=len, reverse=True) if text.startswith(f"{name}.")), None)
            if name is None:
                raise InputError(
                    f"--tracker-set {text}: of none of the trackers {', '.join(own)}; as in {next(iter(own))}.NAME=VALUE"
                )
            own[name].append(text.removeprefix(f"{name}."))

        def settings(trackers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
            return {name: merge(values, parse_overrides(own[name])) for name, values in trackers.items()}

        page(*args, models=Models(settings(train), settings(test), encoder, parse_overrides(text_set), jobs), **others)

    return with_models
