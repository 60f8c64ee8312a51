"""Our scores of rows: a record of each row that was run, with what it was run with."""

from __future__ import annotations

import datetime
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipelines.rows.needs import Places, choices_of
from pipelines.rows.papers import PAGES, Paper, Row
from pipelines.rows.published import VIDEO_KEYS, VIDEO_TITLES, keys_of
from pipelines.rows.steps import Step, is_scored_by_server
from rvos_cache.errors import InputError, warn_once
from rvos_cache.settings import Settings, build, read_toml
from rvos_cache.store.card import provenance
from rvos_cache.system import files
from rvos_cache.system.text_files import read_text
from rvos_select.evaluation.compare import resampled

ROUNDING = 0.2
"""Largest difference, in percent, between J&F and the mean of J and F that are rounded."""


class Output(Settings):
    """The output of a row for one split and one seed, and how it was made."""

    split: str
    seed: int
    source: str
    """The file of the scores; of a server, the file that it returned; of what is to be sent, the zip."""
    date: str
    commit: str
    commands: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    """Settings of training and of trackers that replaced those of the row."""
    definition: str = ""
    """Digest of the row as it was then; empty for what came from elsewhere."""

    @property
    def settings(self) -> tuple[tuple[str, ...], str]:
        """What scores must have in common for a mean over seeds."""
        return self.changes, self.definition


class Score(Output):
    """What one seed gave on one split."""

    values: dict[str, float]
    """Measure -> percent."""
    interval: tuple[float, float] | None = None
    """Of the first measure, 95 % over resampled videos, percent."""
    oracle: float | None = None
    """The first measure of perfect labels, percent."""


class Record(Settings):
    """All scores of a row."""

    row: str
    scores: tuple[Score, ...] = ()
    packed: tuple[Output, ...] = ()
    """Zips for a server."""

    def of(self, split: str) -> list[Score]:
        """The scores of a split, by seed."""
        return sorted((score for score in self.scores if score.split == split), key=lambda score: score.seed)

    def zips(self, split: str) -> list[Output]:
        """The zips of a split that a server has not scored, by seed."""
        scored = {score.seed for score in self.of(split)}
        return sorted((zipped for zipped in self.packed if zipped.split == split and zipped.seed not in scored), key=_seed)


def record_path(name: str, places: Places) -> Path:
    """The file of a row's record."""
    return places.out / name / "record.json"


def read_record(name: str, places: Places) -> Record:
    """The record of a row, empty where it was not run. Raises InputError for a file that is none."""
    path = record_path(name, places)
    if not path.exists():
        return Record(row=name)
    try:
        return build(Record, json.loads(read_text(path)), str(path))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it and run the row again") from error


def add_scores(name: str, places: Places, scores: Sequence[Score] = (), packed: Sequence[Output] = ()) -> Record:
    """The row's record with `scores` and the zips `packed`.

    They replace those of the same split that have the same seed or other settings: a mean over seeds is of one set of settings.
    """
    record = read_record(name, places)
    added = [*scores, *packed]
    kept = [old for old in record.scores if not any(_replaces(new, old) for new in added)]
    zips = [old for old in record.packed if not any(_replaces(new, old, True) for new in packed)]
    record = record.model_copy(update={"scores": (*kept, *scores), "packed": (*zips, *packed)})
    files.write_json(record_path(name, places), record.model_dump())
    return record


def _replaces(new: Output, old: Output, zips: bool = False) -> bool:
    """zips: whether both are zips; a zip replaces no score with its own settings, which is the server's."""
    same_seed = new.seed == old.seed and (zips or isinstance(new, Score))
    return new.split == old.split and (same_seed or (old.definition != "" and new.settings != old.settings))


def _seed(output: Output) -> int:
    return output.seed


def definition_of(paper: Paper, row: Row) -> str:
    """Digest of what a row's scores depend on: its fields but the published ones, its trackers, encoder and settings files."""
    own = row.model_dump(exclude={"paper", "note", "reason", "reach", "train_hours"})
    choices = [choice.model_dump(exclude={"seconds_per_frame", "bytes_per_frame"}) for choice in choices_of(paper, row, Places())]
    first = paper.trainings[row.first] if row.first else None
    names = (row.settings, *([first.settings] if first else [])) if row.way == "train" else ()
    parts = [own, choices, first and first.model_dump(), [read_toml(PAGES / name) for name in names]]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def zips_of(steps: Sequence[Step], seed: int, changes: tuple[str, ...], definition: str) -> Iterator[Output]:
    """The zips that the steps of a row wrote; arguments as of `scores_of`."""
    origin: dict[str, Any] = {"changes": changes, "definition": definition, "date": today(), "commit": commit()}
    commands = tuple(step.line() for step in steps)
    for step in steps:
        if step.makes == "zip":
            yield Output(split=step.split, seed=seed, source=str(step.output), commands=commands, **origin)


def scores_of(steps: Sequence[Step], seed: int, changes: tuple[str, ...] = (), definition: str = "") -> Iterator[Score]:
    """The scores that the steps of a row wrote. changes: settings that replaced those of the row; definition: of the row."""
    commands = tuple(step.line() for step in steps)
    best = {step.split: step.output for step in steps if step.makes == "oracle"}
    for step in steps:
        if step.makes != "scores":
            continue
        content, keys = _json(step.output), keys_of(step.split)
        top = _json(best[step.split]) if step.split in best else {}
        first = resampled(step.output).get(keys[0], {})
        interval = first.get("interval")
        yield Score(
            split=step.split,
            seed=seed,
            values={key: 100 * content[key] for key in keys if content.get(key) is not None},
            interval=None if interval is None else (100 * interval[0], 100 * interval[1]),
            oracle=_percent(top.get("image", top).get(keys[0])),  # of images their measures are below "image"
            source=str(step.output),
            commands=commands,
            changes=changes,
            definition=definition,
            date=today(),
            commit=commit(),
        )


def read_server(name: str, row: Row, path: Path, split: str | None, record: Record, seed: int = 0) -> Score:
    """What a server returned for a row, from the text file `path`: its numbers named J&F, J and F, of 1 or in percent.

    split: the dataset/split; None: the only one of the row that a server scores; record: of the row, whose zip of that split and
    seed the score is of. Raises InputError.
    """
    if row.reason:
        raise InputError(f"row {name} cannot be run here, so there is nothing that a server could have scored: {row.reason}")
    hidden = [key for key in row.paper if is_scored_by_server(key)]
    if split is None and len(hidden) != 1:
        raise InputError(f"row {name}: {len(hidden)} splits are scored by a server ({', '.join(hidden) or 'none'}); give --split")
    if split is not None and split not in hidden:
        raise InputError(f"row {name}: {split!r} is not scored by a server; there are: {', '.join(hidden) or 'none'}")
    split = split or hidden[0]
    sent = [zipped for zipped in record.packed if (zipped.split, zipped.seed) == (split, seed)]
    # A zip that another machine made has no entry here.
    own = sent[0].model_dump() if sent else {"split": split, "seed": seed, "date": today(), "commit": commit()}
    return Score(**{**own, "source": str(path), "values": _numbers(path)})


def mean_and_deviation(scores: Sequence[Score], key: str) -> tuple[float | None, float | None]:
    """Of a measure over seeds, percent; None where a seed lacks it. The deviation is that of a sample, None of one seed."""
    values = [score.values[key] for score in scores if key in score.values]
    if len(values) < len(scores) or not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _numbers(path: Path) -> dict[str, float]:
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the text file that the server returned") from error
    number = r"""["']?\s*[:=,|\t ]\s*([0-9]*\.?[0-9]+)"""
    patterns = {"jf": rf"J\s*(?:&|and|_)\s*F(?:[-_ ]?mean)?{number}", "j": rf"(?<![\w&])J(?:[-_ ]?mean)?{number}"}
    patterns["f"] = rf"(?<![\w&] )(?<![\w&])F(?:[-_ ]?mean)?{number}"
    matches = {key: re.search(pattern, text) for key, pattern in patterns.items()}
    missing = [title for title, key in zip(VIDEO_TITLES, VIDEO_KEYS) if matches[key] is None]
    if missing:
        raise InputError(
            f"{path}: no number named {missing[0]!r}; give a text file with lines such as 'J&F: 48.6', 'J: 45.2', 'F: 52.1'"
        )
    values = {key: float(match[1]) for key, match in matches.items() if match is not None}
    if any(value > 100 for value in values.values()):
        raise InputError(f"{path}: a score of {max(values.values())}, expected percent or fractions of 1")
    scale = 100 if max(values.values()) <= 1 else 1
    if scale != 1:
        warn_once(
            f"{path}: no score is above 1, so they are read as fractions: J&F {values['jf']} is {scale * values['jf']:.1f} %"
        )
    values = {key: scale * value for key, value in values.items()}
    mean = (values["j"] + values["f"]) / 2
    if abs(values["jf"] - mean) > ROUNDING:
        raise InputError(f"{path}: J&F {values['jf']:.2f} is not the mean of J and F, {mean:.2f}; give what the server returned")
    return values


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read_text(path))
    return content


def today() -> str:
    """The date, as in 2026-11-26."""
    return datetime.date.today().isoformat()


def commit() -> str:
    """The code that runs."""
    return str(provenance()["commit"])
