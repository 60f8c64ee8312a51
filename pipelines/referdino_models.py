"""ReferDINO's stage one on its pages: the rows of the paper, how each is reached, and the options that say what stage one runs."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from pipelines.referdino_rows import GROUNDING, IMPORTED_UPSTREAM, WAYS
from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction import Check, extract_all
from rvos_cache.settings import build, merge, parse_overrides, read_toml
from rvos_cache.trackers.referdino.tune_settings import tune_settings
from rvos_cache.trackers.referdino.upstream import RECORD_FILE, tuned_settings
from rvos_cache.tuning import tune
from rvos_select.exchange.import_referdino import import_referdino
from rvos_select.inference.predict import predict, select_all
from rvos_select.runs.checkpoint import run_settings
from rvos_select.training.settings import TrainSettings


@dataclass(frozen=True)
class Models:
    """What the options give.

    upstream: None for that of the row; imported: a run of `import-referdino`; tracker: settings of the tracker; way: None for that of
    the published number; tuning: settings of `rvos-cache tune-referdino`; folder: of the caches, by default from the upstream;
    version: of a tuned upstream, a short digest of its weights, which an upstream that is tuned further has anew.
    """

    upstream: str | None
    imported: Path | None
    tracker: dict[str, Any]
    jobs: int
    way: str | None = None
    tuning: tuple[str, ...] = ()
    folder: str | None = None
    version: str = ""

    def of_version(self, name: str) -> str:
        """The name of a file or folder of the row, another one for each version of a tuned upstream."""
        return f"{name}-{self.version}" if self.version else name

    def way_of(self, published: dict[str, Any]) -> str:
        """How the row is reached: as asked for, by the imported run, or by the first way that trains or selects here."""
        reach: list[str] = published["reach"]
        if "way" in published:
            return str(published["way"])
        return self.way or ("import" if self.imported is not None else next(way for way in reach if way != "import"))

    def check_checkpoint_options(self, published: dict[str, Any]) -> None:
        """Raises InputError for GroundingDINO among the settings of the tracker or of the tuning, which --upstream names."""
        name = "grounding_checkpoint" if self.way_of(published) == "baseline" else "checkpoint"
        tuning = parse_overrides(self.tuning)
        for option, values, setting in (("--tracker-set", self.tracker, name), ("--tune-set", tuning, "checkpoint")):
            if setting in values:
                instead = "leave it out, --imported brings its own" if self.imported else f"give --upstream {values[setting]}"
                raise InputError(f"{option} {setting}={values[setting]}: {instead}")
        if self.tracker.get("masks") == "none":
            raise InputError(
                "--tracker-set masks=none: the page scores masks, and would score empty ones; leave it out, or masks=box"
            )

    def train_settings(self, page: Path, published: dict[str, Any], settings: tuple[str, ...]) -> TrainSettings:
        """Settings of stage two: of the page's file, of the row and of --set. Raises InputError for --set where nothing reads it."""
        way = self.way_of(published)
        if settings and way != "cached":
            hint = "; --tune-set is for tuning" if way == "tune" else ""
            raise InputError(f"--set {settings[0]}: stage two is not trained where a row is reached by {way}{hint}")
        return build(TrainSettings, merge(read_toml(page), parse_overrides([*published["set"], *settings])), str(page), settings)

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
    with naming_options("--tune-set"):
        tuned = tune(data, tune_settings(values), out / "tuned")
    run = out / "tuned-run"
    record = run / IMPORTED_UPSTREAM / RECORD_FILE
    if run.exists() and (not record.is_file() or record.read_bytes() != (tuned / RECORD_FILE).read_bytes()):
        # Of fewer steps: the run is a copy.
        shutil.rmtree(run)
    if not run.exists():
        import_referdino(tuned, None, run)
    version = weights_version(run / IMPORTED_UPSTREAM)
    # A cache holds what one upstream gave: one that was tuned further has caches of its own.
    return replace(models, upstream=None, imported=run, way="tune", folder=f"tuned-{out.name}-{version}", version=version)


def weights_version(upstream: Path) -> str:
    """A short digest of the weights in the folder of a checkpoint."""
    total = hashlib.sha256()
    for path in sorted(upstream.glob("*.safetensors")):
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:8]


@contextmanager
def naming_options(option: str, baseline: bool = False) -> Iterator[None]:
    """Raises InputError of the block with the page's options in the place of `--set`.

    option: that of the settings; baseline: whether `checkpoint` is SAM 2's.
    """
    try:
        yield
    except InputError as error:
        setting = "grounding_checkpoint" if baseline else "checkpoint"
        message = str(error).replace(f"--set {setting}=", "--upstream ")
        raise InputError(message.replace("--set ", f"{option} ")) from error


def extract(
    name: str, root: Path, splits: Sequence[str], out: Path, extraction: dict[str, Any], check: Check | None = None
) -> None:
    """`extract_all` with the arguments `extraction`. Raises InputError that names the page's option of the tracker's settings."""
    with naming_options("--tracker-set", extraction["tracker"] == "sam2-box"):
        extract_all(name, root, splits=splits, out=out, check=check, **extraction)


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
        type=click.Choice([way for way in WAYS if way != "import"]),
        help="How the row is reached.  [default: by what has the published number: tune or baseline, where the row has it]",
    )
    @click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that extract.")
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
            if (imported / RECORD_FILE).is_file():
                # Says which folder to give.
                run_settings(imported)
            if not (imported / IMPORTED_UPSTREAM).is_dir():
                raise InputError(f"{imported}: has no folder {IMPORTED_UPSTREAM!r}; give a run of rvos-select import-referdino")
            # A folder of tune-referdino has such a folder too.
            run_settings(imported)
        page(*args, models=Models(upstream, imported, parse_overrides(tracker_set), jobs, way, tune_set), **others)

    return with_models
