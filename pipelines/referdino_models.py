"""ReferDINO's stage one on its pages: the rows of the paper, the frozen upstream, and the options that say where it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rvos_cache.errors import InputError
from rvos_cache.settings import merge, parse_overrides, read_toml

PAPER = Path(__file__).parent / "papers/referdino.toml"
IMPORTED_UPSTREAM = "upstream"
"""Folder of the run that `rvos-select import-referdino` writes, with GroundingDINO and ReferDINO's head."""


@dataclass(frozen=True)
class Models:
    """What the options give. upstream: None for that of the row; imported: a run of `import-referdino`; tracker: settings."""

    upstream: str | None
    imported: Path | None
    tracker: dict[str, Any]
    jobs: int

    def name(self, published: dict[str, Any]) -> str:
        """Of the folder of the caches: rows of one upstream and the same settings of the tracker share it."""
        settings = "-".join(text.replace("=", "_") for text in published.get("tracker", ()))
        checkpoint = self.imported.name if self.imported is not None else Path(self.upstream or published["upstream"]).name
        return "-".join(word for word in (checkpoint, settings) if word)

    def extraction(self, published: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `extract_all`. Masks are the released decoder's with an imported run, else SAM 2's."""
        if self.imported is not None:
            own = {"checkpoint": str(self.imported / IMPORTED_UPSTREAM), "masks": "head"}
        else:
            own = {"checkpoint": self.upstream or published["upstream"], "masks": "sam2"}
        return {
            "tracker": "gdino-queries",
            # The selector reads the text from the tracks cache.
            "encoder": "hashed",
            "overrides": merge(merge(own, parse_overrides(published.get("tracker", ()))), self.tracker),
            "jobs": self.jobs,
        }


def referdino_models(page: Callable[..., None]) -> Callable[..., None]:
    """--upstream, --imported, --jobs and --tracker-set, which the page takes as one argument, `models`."""

    @click.option("--upstream", help="GroundingDINO to freeze: a hub name or a folder.  [default: the row's]")
    @click.option(
        "--imported",
        type=click.Path(path_type=Path),
        help="A run that rvos-select import-referdino wrote: nothing is trained, its upstream draws the masks.",
    )
    @click.option("--jobs", default=1, show_default=True, help="Processes that extract.")
    @click.option("--tracker-set", multiple=True, metavar="K=V", help="A setting of the tracker gdino-queries, e.g. masks=box.")
    @functools.wraps(page)
    def with_models(
        *args: Any, upstream: str | None, imported: Path | None, jobs: int, tracker_set: tuple[str, ...], **others: Any
    ) -> None:
        if imported is not None:
            if upstream is not None:
                raise InputError("--imported brings its own upstream: leave --upstream out")
            if not (imported / IMPORTED_UPSTREAM).is_dir():
                raise InputError(f"{imported}: has no folder {IMPORTED_UPSTREAM!r}; give a run of rvos-select import-referdino")
        page(*args, models=Models(upstream, imported, parse_overrides(tracker_set), jobs), **others)

    return with_models


def published_row(row: str, benchmark: str, models: Models) -> dict[str, Any]:
    """The row `table.name` of the paper, with its scores on `benchmark` as "scores": [J&F, J, F] or [mAP, overall IoU, mean IoU].

    Raises InputError when the dataset `benchmark` has no such row, or it cannot be run here.
    """
    rows = {f"{table}.{name}": values for table, names in read_toml(PAPER).items() for name, values in names.items()}
    own = {name: scores(name, values, benchmark) for name, values in rows.items() if "reach" in values}
    possible = [name for name, value in own.items() if value is not None and {"import", "cached"} & set(rows[name]["reach"])]
    if row in rows and "reason" in rows[row]:
        raise InputError(f"{PAPER}: the row {row!r} is not trained here: {rows[row]['reason']}")
    if row in rows and "cached" not in rows[row]["reach"]:
        raise InputError(
            f"{PAPER}: the row {row!r} is of another upstream: rvos-cache tune-referdino --set {' '.join(rows[row]['tune'])}, and "
            "give its folder to a row that is run here as --upstream"
        )
    if row not in possible:
        raise InputError(f"{PAPER}: no row {row!r} of {benchmark}; there are: {', '.join(possible)}")
    if models.imported is not None and "import" not in rows[row]["reach"]:
        raise InputError(f"{PAPER}: no weights of the row {row!r} were released; leave --imported out")
    return {**rows[row], "scores": own[row]}


def scores(row: str, values: dict[str, Any], benchmark: str) -> list[float] | None:
    """The published scores of a row on a dataset; None where it has none."""
    tables = {"ref-youtube-vos": ("table_5",), "mevis": ("table_2", "table_3", "table_4", "figure_7")}
    key = "paper" if row.startswith(tables.get(benchmark, ("none",))) else benchmark.replace("-", "_")
    found: list[float] | None = values.get(key)
    return found


def published_scores(values: list[float], titles: tuple[str, ...] = ("J&F", "J", "F")) -> str:
    """As in "J&F 48.0, J 43.6, F 52.3"; of a row that has no number, that."""
    return ", ".join(f"{title} {value}" for title, value in zip(titles, values)) or "no number"
