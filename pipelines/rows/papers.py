"""The papers' tables as data: `papers/<system>.toml`, one row of a table in one table of TOML.

system = "SOLA"

[trackers.grid]                     # a tracker with settings; {sam2} is the place of the weights `sam2` of needs.toml
tracker = "sam2-grid"
set = ["checkpoint={sam2}"]

[defaults]                          # of all rows; a table may replace them for its rows
train = { "mevis/train" = ["grid"] }

[table_1]
title = "MeViS"

[table_1.val]                       # the row sola.table_1.val
paper = { "mevis/valid" = [48.6, 45.2, 52.1] }
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from rvos_cache.errors import InputError
from rvos_cache.settings import Settings, build, read_toml

PAGES = Path(__file__).parents[1]
TABLE = re.compile(r"(table|figure)_\w+")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
LONGEST = 120
"""Characters of a cache's name, which a file system may limit to 255 with what is added to it."""
PLAIN = re.compile(r"[\w.]+(-\w+)*(=([\w.]+|\{\w+\}[\w./]*))?|\w+:\d+")
"""Words whose names differ where they do: `tracker`, `name=value`, `checkpoint={weights}`, `corruption:severity`."""
CONCATENATED = ("set",)
"""Fields of a row that are added to those of its table and of the defaults; other fields replace them."""


def _cache_name(words: Sequence[str]) -> str:
    """File name of a cache with the settings `words`; other words have another name."""
    name = "-".join(re.sub(r"[^\w.]+", "_", word.replace("checkpoint=", "")).strip("_") for word in words)
    if len(name) <= LONGEST and all(PLAIN.fullmatch(word) for word in words):
        return name
    return f"{name[:LONGEST]}-{sha256(repr(tuple(words)).encode()).hexdigest()[:8]}"


class TrackerChoice(Settings):
    """A tracker with settings, which makes the tracks caches of some rows."""

    tracker: str
    """Name in TRACKERS."""
    set: tuple[str, ...] = ()
    """Its settings, `name=value`; `{name}` is the place of the weights `name`."""
    corrupt: str | None = None
    """Corruption of the frames before it sees them, as `rvos-cache extract --corrupt` takes it."""
    seconds_per_frame: float | None = None
    """Seconds of one H200 for a frame of MeViS; None: not measured."""
    bytes_per_frame: float | None = None
    """Bytes of the cache for a frame of MeViS; None: not known."""

    @property
    def key(self) -> str:
        """Name of its caches, the same for the same tracker and settings in every paper."""
        return _cache_name([self.tracker, *self.set, *([self.corrupt] if self.corrupt else [])])


class EncoderChoice(Settings):
    """A text encoder with settings, which makes the text caches of some rows."""

    encoder: str
    set: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of its caches."""
        return _cache_name((self.encoder, *self.set))


class Training(Settings):
    """A training that comes before that of some rows, which start from its weights."""

    settings: str
    """File of training settings in pipelines/."""
    set: tuple[str, ...] = ()
    train: dict[str, list[str]]


class Row(Settings):
    """One row of a table. The ways to reach it:

    train: `train` on the caches of `train`, predict `paper`'s splits; select: the same without training, by `selector`; import: the
    released weights `release` become a run by the command `importer`; tune: `rvos-cache tune-referdino` makes the upstream first.
    """

    paper: dict[str, list[float]]
    """Tested dataset/split -> the published numbers, percent, in the order of `metrics`; empty where the paper has none."""
    note: str = ""
    """What the row is called in the paper, or what it changes."""
    reason: str = ""
    """Why it cannot be run here; empty where it can."""
    reach: tuple[str, ...] = ()
    """Where the paper has `ways`: those that lead to it. Of a row `x` they are the rows `x`, `x_<second way>`, …"""
    way: Literal["train", "select", "import", "tune"] = "train"
    settings: str = ""
    """File of training settings in pipelines/."""
    set: tuple[str, ...] = ()
    """Training settings that replace those of the file."""
    train: dict[str, list[str]] = {}
    """Dataset/split -> the trackers whose tracks it is trained on."""
    first: str = ""
    """The training of `trainings` that comes before, whose weights this one starts from."""
    valid: dict[str, list[str]] = {}
    """Dataset/split -> the trackers whose tracks choose the best epoch."""
    test: list[str] = []
    """The trackers whose tracks are tested."""
    tracker_set: tuple[str, ...] = ()
    """Settings that the row adds to its trackers, `<tracker>.<name>=<value>`."""
    upstream: str = ""
    """Weights that the trackers of the row name as `{upstream}`."""
    encoder: str = ""
    selector: str = ""
    """way = select: a selector that needs no training."""
    selector_set: tuple[str, ...] = ()
    policy: tuple[str, ...] = ()
    """Options of `evaluate` and `merge`: --top1, --threshold and its value, --empty and its value."""
    release: str = ""
    """way = import: the weights that are imported."""
    importer: tuple[str, ...] = ()
    """way = import: the command of rvos-select, and its options."""
    tune: tuple[str, ...] = ()
    """way = tune: settings of `rvos-cache tune-referdino`."""
    train_hours: float | None = None
    """Hours of training on one H200; None: not known."""

    @property
    def plain_set(self) -> list[str]:
        """`set` without the settings that name weights, whose places the options of a page give."""
        return [pair for pair in self.set if not PLACEHOLDER.search(pair)]


class Table(Settings):
    """A table of a paper: its title and its rows by name."""

    title: str
    rows: dict[str, Row]


class Paper(Settings):
    """A system's paper with its tables by name."""

    system: str
    name: str
    title: str
    link: str = ""
    choices: tuple[str, ...] = ()
    """What the paper leaves open or contradicts, and what is chosen here."""
    trackers: dict[str, TrackerChoice] = {}
    encoders: dict[str, EncoderChoice] = {}
    trainings: dict[str, Training] = {}
    tables: dict[str, Table]
    path: Path

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Every row with its name, `<system>.<table>.<row>`."""
        for table_name, table in self.tables.items():
            for name, row in table.rows.items():
                yield f"{self.name}.{table_name}.{name}", row


def read_paper(path: Path) -> Paper:
    """The tables in `path`. Raises InputError for an unknown field, or a row that names a tracker or encoder that is not there."""
    content = read_toml(path)
    defaults = content.pop("defaults", {})
    ways = content.pop("ways", {})
    tables = {}
    for name in [key for key in content if TABLE.fullmatch(key)]:
        tables[name] = _table(content.pop(name), defaults, ways, f"{path}, [{name}]")
    paper = build(Paper, {**content, "name": path.stem, "path": path, "tables": tables}, str(path))
    for row_name, row in paper.rows():
        _check_names(paper, row_name, row)
    return paper


@cache
def all_papers(folder: Path = PAGES / "papers") -> dict[str, Paper]:
    """System -> its paper, of every file in `folder`."""
    return {path.stem: read_paper(path) for path in sorted(folder.glob("*.toml"))}


def find_row(name: str, papers: Mapping[str, Paper]) -> tuple[Paper, str, Row]:
    """The paper, the whole name and the row `name`. Raises InputError if there is none, naming the nearest."""
    rows = {row_name: (paper, row) for paper in papers.values() for row_name, row in paper.rows()}
    if name in rows:
        return rows[name][0], name, rows[name][1]
    from difflib import get_close_matches

    # Of a table, or of a row without its system, all; else rows of the same table before those of others.
    near = [row_name for row_name in rows if row_name.startswith(f"{name}.") or row_name.endswith(f".{name}")]
    of_table = [row_name for row_name in rows if row_name.rpartition(".")[0] == name.rpartition(".")[0]]
    near = near or get_close_matches(name, of_table, 12, 0) or get_close_matches(name, rows, 5, 0.4)
    # Those that can be run here, if there are any.
    near = [row_name for row_name in near if not rows[row_name][1].reason] or near
    raise InputError(f"no row {name!r}; {'nearest: ' + ', '.join(near[:12]) if near else 'python -m pipelines lists all'}")


def row_of(system: str, name: str) -> Row:
    """The row `<table>.<row>` of a system, for a page that trains it. Raises InputError if there is none, or it cannot be run here."""
    paper = read_paper(PAGES / "papers" / f"{system}.toml")
    rows = {whole.partition(".")[2]: row for whole, row in paper.rows()}
    if name not in rows:
        possible = ", ".join(key for key, row in rows.items() if not row.reason)
        raise InputError(f"{paper.path}: no row {name!r}; there are: {possible}")
    if rows[name].reason:
        raise InputError(f"{paper.path}: the row {name!r} cannot be run here: {rows[name].reason}")
    return rows[name]


def placeholders(texts: Sequence[str]) -> list[str]:
    """Names in braces in `texts`, each once."""
    return list(dict.fromkeys(name for text in texts for name in PLACEHOLDER.findall(text)))


def _table(content: dict[str, Any], defaults: Mapping[str, Any], ways: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Table of TOML -> {"title", "rows"}: fields of a row are defaults of the table, other tables in it are rows."""
    own = {key: content.pop(key) for key in list(content) if key in Row.model_fields}
    title = content.pop("title", "")
    base = _merged(defaults, own)
    rows = {}
    for name, values in content.items():
        if not isinstance(values, dict):
            fields = ", ".join(Row.model_fields)
            raise InputError(f"{location}: {name!r} is neither a field of a row nor a row; there are: {fields}")
        if not values.get("reach"):
            rows[name] = _merged(base, values)
        for number, way in enumerate(values.get("reach", ())):
            if way not in ways:
                raise InputError(f"{location}, row {name}: no way {way!r}; there are: {', '.join(ways)}")
            row = _merged(_merged(base, ways[way]), values)
            if row.get("way") != "train":
                # Settings of a training of stage two.
                row.pop("set", None)
            if number and row["way"] == "train":
                # The published number is not of this way.
                row["paper"] = {split: [] for split in values["paper"]}
            rows[f"{name}_{way}" if number else name] = row
    return {"title": title, "rows": rows}


def _merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    joined = {key: [*base.get(key, ()), *values.get(key, ())] for key in CONCATENATED if key in base or key in values}
    return {**base, **values, **joined}


def _check_names(paper: Paper, name: str, row: Row) -> None:
    location = f"{paper.path}, row {name}"
    if row.reason:
        return
    for choice in [*row.test, *(c for choices in (*row.train.values(), *row.valid.values()) for c in choices)]:
        if choice not in paper.trackers:
            raise InputError(f"{location}: no tracker {choice!r}; there are: {', '.join(paper.trackers)}")
    for text in row.tracker_set:
        if text.partition(".")[0] not in paper.trackers:
            raise InputError(f"{location}: tracker_set {text!r}: no tracker of that name; there are: {', '.join(paper.trackers)}")
    if row.first and row.first not in paper.trainings:
        raise InputError(f"{location}: no training {row.first!r}; there are: {', '.join(paper.trainings)}")
    if row.encoder not in paper.encoders:
        raise InputError(f"{location}: no encoder {row.encoder!r}; there are: {', '.join(paper.encoders)}")
    if not row.test:
        raise InputError(f"{location}: no trackers in `test`")
    if row.way == "train" and not (row.train and row.settings):
        raise InputError(f"{location}: a row that is trained needs `train` and `settings`")
    if row.way == "tune" and not (len(row.train) == 1 and row.importer):
        raise InputError(f"{location}: a row whose upstream is tuned needs one split in `train`, and `importer`")
    if row.way == "select" and not row.selector:
        raise InputError(f"{location}: a row that is not trained needs `selector`")
    if row.way == "import" and not (row.release and row.importer):
        raise InputError(f"{location}: a row of released weights needs `release` and `importer`")
