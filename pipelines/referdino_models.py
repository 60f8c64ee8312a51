"""ReferDINO's stage one on its pages: the rows of the paper, how each is reached, and the options that say what stage one runs."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from pipelines.rows.needs import Places
from pipelines.rows.papers import PAGES, Row, read_paper
from pipelines.rows.published import named
from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction import extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.trackers.referdino.tune_settings import tune_settings
from rvos_cache.trackers.referdino.upstream import RECORD_FILE, tuned_settings
from rvos_cache.tuning import tune
from rvos_select.exchange.import_referdino import import_referdino
from rvos_select.inference.predict import predict, select_all
from rvos_select.training.settings import TrainSettings

PAPER = PAGES / "papers/referdino.toml"
IMPORTED_UPSTREAM = "upstream"
"""Folder of the run that `rvos-select import-referdino` writes, with GroundingDINO and ReferDINO's head."""
WAYS = ("cached", "tune", "import", "baseline")
"""The ways of papers/referdino.toml to reach a row."""
GROUNDING = "grounding_checkpoint="
TESTED = {
    "mevis": "mevis/valid", "ref-youtube-vos": "ref-youtube-vos/valid", "ref-davis17": "ref-davis17/valid",
    "a2d-sentences": "a2d-sentences/test-frames", "jhmdb-sentences": "jhmdb-sentences/test-frames",
}  # fmt: skip
"""Dataset -> the split of its published numbers."""


@dataclass(frozen=True)
class Models:
    """What the options give.

    upstream: None for that of the row; imported: a run of `import-referdino`; tracker: settings of the tracker; way: None for the
    first that the row has; tuning: settings of `rvos-cache tune-referdino`; folder: of the caches, by default from the upstream.
    """

    upstream: str | None
    imported: Path | None
    tracker: dict[str, Any]
    jobs: int
    way: str | None = None
    tuning: tuple[str, ...] = ()
    folder: str | None = None

    def way_of(self, published: dict[str, Any]) -> str:
        """How the row is reached: as asked for, by the imported run, or by the quickest way that it has."""
        reach: list[str] = published["reach"]
        return self.way or ("import" if self.imported is not None else next(way for way in WAYS if way in reach))

    def train_settings(self, page: Path, published: dict[str, Any], settings: tuple[str, ...]) -> TrainSettings:
        """Settings of stage two: of the page's file, of the row and of --set. Raises InputError for --set where nothing reads it."""
        way = self.way_of(published)
        if settings and way != "cached":
            hint = "; --tune-set is for tuning" if way == "tune" else ""
            raise InputError(f"--set {settings[0]}: stage two is not trained where a row is reached by {way}{hint}")
        return build(TrainSettings, merge(read_toml(page), parse_overrides([*published["set"], *settings])), str(page))

    def name(self, published: dict[str, Any]) -> str:
        """Of the folder of the caches: rows of one upstream and the same settings of the tracker share it."""
        if self.folder is not None:
            return self.folder
        words = [text.replace("=", "_") for text in published.get("tracker", ()) if not text.startswith(GROUNDING)]
        if self.imported is not None:
            checkpoint = self.imported.name
        else:
            checkpoint = Path(self.upstream or published["upstream"]).name
        baseline = ["sam2-box"] * (self.way_of(published) == "baseline")
        return "-".join([*baseline, checkpoint, *words])

    def extraction(self, published: dict[str, Any], own: dict[str, Any] | None = None) -> dict[str, Any]:
        """Arguments of `extract_all`. own: settings of `gdino-queries` that the page has.

        Masks are the mask decoder's of an imported or tuned run, else SAM 2's.
        """
        tracker, settings = "gdino-queries", parse_overrides(published.get("tracker", ()))
        if self.way_of(published) == "baseline":
            tracker = "sam2-box"
            if self.upstream is not None:
                settings["grounding_checkpoint"] = self.upstream
        elif self.imported is not None:
            folder = self.imported / IMPORTED_UPSTREAM
            fixed = {"checkpoint": str(folder.absolute()), "masks": "head", **(own or {}), **tuned_settings(folder)}
            settings = merge(settings, fixed)
        else:
            settings = merge({"checkpoint": self.upstream or published["upstream"], "masks": "sam2", **(own or {})}, settings)
        return {
            "tracker": tracker,
            # The selector reads the text from the tracks cache.
            "encoder": "hashed",
            "overrides": merge(settings, self.tracker),
            "jobs": self.jobs,
        }


def tuned_models(models: Models, published: dict[str, Any], preset: str, data: Dataset, out: Path) -> Models:
    """`models` with a run of the row's own: its upstream is trained in `out`/tuned and imported as `out`/tuned-run.

    preset: of `tune-referdino`, without the size of the backbone, which is the row's; data: the split to train on. A run that was
    interrupted continues.
    """
    size = "b" if published["upstream"].endswith("base") else "t"
    values: dict[str, Any] = {"preset": f"{preset}_swin{size}", "checkpoint": models.upstream or published["upstream"]}
    values = merge(values, parse_overrides([*published.get("tune", ()), *models.tuning]))
    tuned = tune(data, tune_settings(values), out / "tuned")
    run = out / "tuned-run"
    record = run / IMPORTED_UPSTREAM / RECORD_FILE
    if run.exists() and (not record.is_file() or record.read_bytes() != (tuned / RECORD_FILE).read_bytes()):
        # Of fewer steps: the run is a copy.
        shutil.rmtree(run)
    if not run.exists():
        import_referdino(tuned, None, run)
    return replace(models, upstream=None, imported=run, way="tune", folder=f"tuned-{out.name}")


def extract(name: str, root: Path, splits: Sequence[str], out: Path, extraction: dict[str, Any]) -> None:
    """`extract_all` with the arguments `extraction`. Raises InputError that names the page's option of the tracker's settings."""
    try:
        extract_all(name, root, splits=splits, out=out, **extraction)
    except InputError as error:
        raise InputError(str(error).replace("--set ", "--tracker-set ")) from error


def select(run: Path | None, tracks: Path, texts: Path, out: Path) -> Path:
    """The selections of a run; of the baseline, which has none, all tracks of each expression."""
    return select_all([tracks], [texts], out) if run is None else predict(run, [tracks], [texts], out)


def referdino_models(page: Callable[..., None]) -> Callable[..., None]:
    """--upstream, --imported, --way, --jobs, --tracker-set and --tune-set, which the page takes as one argument, `models`."""

    @click.option("--upstream", help="GroundingDINO to freeze, or to tune from: a hub name or a folder.  [default: the row's]")
    @click.option(
        "--imported",
        type=click.Path(path_type=Path),
        help="A run that rvos-select import-referdino wrote, released or tuned: nothing is trained, its upstream draws masks.",
    )
    @click.option(
        "--way",
        type=click.Choice(["cached", "tune", "baseline"]),
        help="How the row is reached.  [default: the first of these that it has]",
    )
    @click.option("--jobs", default=1, show_default=True, help="Processes that extract.")
    @click.option("--tracker-set", multiple=True, metavar="K=V", help="A setting of the tracker, e.g. masks=box.")
    @click.option("--tune-set", multiple=True, metavar="K=V", help="A setting of rvos-cache tune-referdino, for --way tune.")
    @functools.wraps(page)
    def with_models(
        *args: Any,
        upstream: str | None,
        imported: Path | None,
        way: str | None,
        jobs: int,
        tracker_set: tuple[str, ...],
        tune_set: tuple[str, ...],
        **others: Any,
    ) -> None:
        if imported is not None:
            if upstream is not None:
                raise InputError("--imported brings its own upstream: leave --upstream out")
            if way is not None:
                raise InputError(f"--imported is a way of its own: leave --way {way} out")
            if not (imported / IMPORTED_UPSTREAM).is_dir():
                raise InputError(f"{imported}: has no folder {IMPORTED_UPSTREAM!r}; give a run of rvos-select import-referdino")
        page(*args, models=Models(upstream, imported, parse_overrides(tracker_set), jobs, way, tune_set), **others)

    return with_models


def all_rows() -> dict[str, dict[str, Any]]:
    """Row `<table>.<row>` -> what the pages read of it, of each row that is not a further way to another.

    "paper": dataset/split -> the published numbers; with "reason" there is no more. Else "reach": its ways, "upstream": the
    GroundingDINO of tune and cached, "set": settings of stage two, "tune", "tracker": settings of tune-referdino and of the tracker.
    """
    rows = {whole.partition(".")[2]: row for whole, row in read_paper(PAPER).rows()}
    further = {f"{name}_{way}" for name, row in rows.items() for way in row.reach[1:]}
    return {name: _values(rows, name) for name in rows if name not in further}


def _values(rows: Mapping[str, Row], name: str) -> dict[str, Any]:
    row = rows[name]
    if row.reason:
        return {"paper": row.paper, "reason": row.reason}
    ways = {way: rows[f"{name}_{way}" if number else name] for number, way in enumerate(row.reach)}
    upstream = Places().checkpoint(row.upstream)
    values: dict[str, Any] = {"paper": row.paper, "reach": list(row.reach), "upstream": upstream, "set": []}
    if "cached" in ways:
        values["set"] = list(ways["cached"].set)
    if "tune" in ways:
        values["tune"] = [pair for pair in ways["tune"].tune if not pair.startswith(("preset=", "checkpoint="))]
    # The page of single frames sets their size itself.
    pairs = dict.fromkeys(text.partition(".")[2] for text in row.tracker_set)
    values["tracker"] = [pair for pair in pairs if not pair.startswith("resizing=")]
    if "baseline" in ways:
        values["tracker"] = [f"{GROUNDING}{upstream}", "prompt_every=100000"]
    return values


def published_row(row: str, benchmark: str, models: Models) -> dict[str, Any]:
    """The row `<table>.<row>` of the paper, see `all_rows`, with its scores on `benchmark` as "scores": [J&F, J, F] or [mAP, overall
    IoU, mean IoU].

    Raises InputError when the dataset `benchmark` has no such row, or it cannot be run here.
    """
    rows = all_rows()
    own = {name: scores(values, benchmark) for name, values in rows.items() if "reach" in values}
    possible = [name for name, value in own.items() if value is not None]
    if row in rows and "reason" in rows[row]:
        raise InputError(f"{PAPER}: the row {row!r} is not trained here: {rows[row]['reason']}")
    if row not in possible:
        raise InputError(f"{PAPER}: no row {row!r} of {benchmark}; there are: {', '.join(possible)}")
    reach = rows[row]["reach"]
    # A run of one's own tuning reaches a row that is tuned too.
    is_tuned = models.imported is not None and bool(tuned_settings(models.imported / IMPORTED_UPSTREAM))
    if models.imported is not None and "import" not in reach and not ("tune" in reach and is_tuned):
        raise InputError(f"{PAPER}: no weights of the row {row!r} were released; leave --imported out")
    if models.way is not None and models.way not in reach:
        raise InputError(f"{PAPER}: the row {row!r} is not reached by --way {models.way}, but by {', '.join(reach)}")
    if models.tuning and models.way_of(rows[row]) != "tune":
        raise InputError(f"--tune-set {models.tuning[0]}: the row {row!r} is not tuned; give --way tune, or leave it out")
    return {**rows[row], "scores": own[row]}


def scores(values: dict[str, Any], benchmark: str) -> list[float] | None:
    """The published scores of a row on a dataset; None where it has none."""
    tested: list[float] | None = values["paper"].get(TESTED[benchmark])
    return tested


def published_scores(benchmark: str, values: list[float]) -> str:
    """As in "mevis/valid J&F 48.0, J 43.6, F 52.3"; of a row that has no number, that."""
    return f"{TESTED[benchmark]} {named(TESTED[benchmark], values)}"
