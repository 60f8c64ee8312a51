"""What rows need on disk: datasets and weights, where they are looked for, and where to fetch them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.rows.papers import PAGES, PLACEHOLDER, EncoderChoice, Paper, Row, TrackerChoice, placeholders
from rvos_cache.datasets import dataset_class
from rvos_cache.datasets.ref_youtube_vos import PARTS
from rvos_cache.errors import InputError
from rvos_cache.pretrained import resolve_checkpoint
from rvos_cache.settings import Settings, build, parse_overrides, read_toml
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.tune_settings import tracker_settings, tune_settings

NEEDS = PAGES / "needs.toml"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Dataset(Settings):
    """A benchmark."""

    fetch: str
    """Where it is published."""
    folder: str = ""
    """Folder below data/, where it is not the dataset's name."""
    splits: dict[str, tuple[int, int, int]] = {}
    """Split -> its videos, frames and sentences, where they are known."""
    servers: dict[str, str] = {}
    """Split whose ground truth is hidden -> the server that scores it."""


class Weights(Settings):
    """A frozen model's checkpoint."""

    what: str
    checkpoint: str
    """Name on the Hugging Face hub, or the path where it is looked for."""
    fetch: str = ""
    """Where it is published and the command that converts it; empty for a name on the hub, which is fetched by itself."""
    licence: str = ""
    gigabytes: float = 0.0
    """Of the files; 0: not known."""

    def source(self, where: str = "") -> str:
        """Where to get it. where: the name on the hub, if it is not `checkpoint`."""
        return self.fetch or f"https://huggingface.co/{where or self.checkpoint}, fetched when it is first used"


class Needs(Settings):
    """All datasets and weights by name."""

    datasets: dict[str, Dataset]
    weights: dict[str, Weights]


@cache
def all_needs(path: Path = NEEDS) -> Needs:
    """The content of needs.toml."""
    return build(Needs, read_toml(path), str(path))


@dataclass(frozen=True)
class Places:
    """Where things are. out: folder of caches, runs and scores; roots: dataset -> its folder, weights: name -> checkpoint, where
    they differ from `data/<dataset>` and needs.toml; overrides: training settings that replace those of every row; tracker_set:
    name of a tracker in a paper -> settings that replace its own."""

    out: Path = Path("out/rows")
    roots: Mapping[str, Path] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    tracker_set: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def changes(self) -> tuple[str, ...]:
        """The settings of training and of trackers that replace those of rows."""
        return (*self.overrides, *(f"{name}.{pair}" for name, pairs in self.tracker_set.items() for pair in pairs))

    def check(self) -> None:
        """Raises InputError for a dataset or weights that needs.toml lacks."""
        known = all_needs()
        for option, given, names in (("--root", self.roots, known.datasets), ("--weights", self.weights, known.weights)):
            for name in given:
                if name not in names:
                    kind = "dataset" if option == "--root" else "weights"
                    raise InputError(f"{option} {name}: no {kind} of that name in {NEEDS}; there are: {', '.join(names)}")

    def root(self, dataset: str) -> Path:
        """Folder of a dataset."""
        return self.roots.get(dataset, Path("data") / (all_needs().datasets[dataset].folder or dataset))

    def checkpoint(self, name: str) -> str:
        """Place of the weights `name`. Raises InputError for a name that needs.toml lacks."""
        known = all_needs().weights
        if name not in known:
            raise InputError(f"{NEEDS}: no weights {name!r}; there are: {', '.join(known)}")
        return self.weights.get(name, known[name].checkpoint)

    def filled(self, text: str) -> str:
        """`text` with the places of the weights that it names in braces."""
        return PLACEHOLDER.sub(lambda match: self.checkpoint(match[1]), text)


@dataclass(frozen=True)
class Need:
    """A dataset, a split of it or weights that a row needs. name: as in needs.toml, `<dataset>/<split>` for a split that its folder
    lacks; where: its place; fetch: how to get it; present: whether it is there, None for weights of the hub that are fetched when
    they are first used; option: what says that it is elsewhere."""

    name: str
    where: str
    fetch: str
    present: bool | None
    option: str


def needs_of(paper: Paper, row: Row, places: Places) -> list[Need]:
    """Every dataset and all weights that a row needs, each once."""
    return [*_datasets(paper, row, places), *weights_of(paper, row, places)]


def row_tracker(paper: Paper, row: Row, name: str, places: Places) -> TrackerChoice:
    """A tracker as a row uses it: with its settings, those of the row, those that the row's upstream is tuned with, and those of the
    user."""
    choice = paper.trackers[name]
    own = [text.removeprefix(f"{name}.") for text in row.tracker_set if text.startswith(f"{name}.")]
    pairs = (*choice.set, *own)
    pairs = (*pairs, *_tuned(row, pairs, places), *places.tracker_set.get(name, ()))
    changes: dict[str, Any] = {"set": tuple(named_upstream(text, row) for text in pairs)}
    if len(pairs) > len(choice.set):
        # Measured with the tracker's own settings.
        changes |= {"seconds_per_frame": None, "bytes_per_frame": None}
    return choice.model_copy(update=changes)


def _tuned(row: Row, pairs: Sequence[str], places: Places) -> list[str]:
    """The settings that a tracker of the row's own tuning needs and that `pairs`, its settings, have not: as the upstream is tuned."""
    if row.way != "tune" or not any("{run}" in pair for pair in pairs):
        return []
    try:
        tuned = tune_settings(parse_overrides([*row.tune, *places.overrides])).model_dump(mode="json")
        own = build(GdinoQueriesSettings, parse_overrides(pairs), "gdino-queries").model_dump(mode="json")
    except InputError:
        # Reported by `check_options`; the board lists a row also where --set is meant for others.
        return []
    return [f"{name}={value}" for name, value in tracker_settings(tuned).items() if own[name] != value]


def named_upstream(text: str, row: Row) -> str:
    """`text` with the weights that the row names as its upstream."""
    return text.replace("{upstream}", f"{{{row.upstream}}}")


def trackers_of(paper: Paper, row: Row) -> list[str]:
    """The names of a row's trackers, each once."""
    return list(dict.fromkeys([*(name for _, names in trained_splits(paper, row) for name in names), *row.test]))


def choices_of(paper: Paper, row: Row, places: Places) -> list[TrackerChoice | EncoderChoice]:
    """The trackers and the encoder of a row."""
    trackers = [row_tracker(paper, row, name, places) for name in trackers_of(paper, row)]
    return [*trackers, *([paper.encoders[row.encoder]] if row.encoder else [])]


def trained_splits(paper: Paper, row: Row) -> list[tuple[str, list[str]]]:
    """Every dataset/split of which a row reads caches to train, with its trackers."""
    first = paper.trainings[row.first].train.items() if row.first else ()
    return [*first, *row.train.items(), *row.valid.items()] if row.way == "train" else []


def _datasets(paper: Paper, row: Row, places: Places) -> Iterator[Need]:
    tuned = row.train if row.way == "tune" else {}
    splits: dict[str, list[str]] = {}
    for key in dict.fromkeys((*dict(trained_splits(paper, row)), *tuned, *row.paper)):
        name, _, split = key.partition("/")
        splits.setdefault(name, []).append(split)
    for name, read in splits.items():
        root, fetch = places.root(name), all_needs().datasets[name].fetch
        there = dataset_class(name).splits(root) if root.is_dir() else []
        absent = [split for split in read if not _derived_from(split) & {*there}]
        option = f"--root {name}=FOLDER"
        if not there or not absent:
            yield Need(name, str(root), fetch, bool(there), option)
        else:
            yield from (Need(f"{name}/{split}", str(root), fetch, False, option) for split in absent)


def _derived_from(split: str) -> set[str]:
    """The splits of which one must be there for `split`: "train-pseudo8" is made from "train", "fit" is a part of it."""
    return {split, split.partition("-")[0], *(("train",) if split in PARTS else ())}


def weights_texts(paper: Paper, row: Row, places: Places) -> list[str]:
    """Every text of a row that may name weights in braces, but settings that the user replaces."""
    texts = [text for choice in choices_of(paper, row, places) for text in _last(choice.set)]
    if row.way == "train":
        texts += _last((*row.set, *places.overrides))
        texts += _last((*paper.trainings[row.first].set, *places.overrides)) if row.first else []
    if row.way == "tune":
        texts += _last((*(named_upstream(text, row) for text in row.tune), *places.overrides))
    if row.way == "import":
        texts += [named_upstream(text, row) for text in (*row.importer, row.release)]
    return [*texts, *(named_upstream(text, row) for text in row.selector_set)]


def _last(pairs: Sequence[str]) -> list[str]:
    """The last `name=value` of each name."""
    return list({pair.partition("=")[0]: pair for pair in pairs}.values())


def weights_of(paper: Paper, row: Row, places: Places) -> Iterator[Need]:
    """All weights that a row needs, each once."""
    for name in placeholders(weights_texts(paper, row, places)):
        if name == "run":
            continue
        weights, where = all_needs().weights[name], places.checkpoint(name)
        on_hub = bool(HUB_NAME.fullmatch(where)) and not (name in places.weights and _is_path(where))
        present: bool | None = Path(resolve_checkpoint(where)).exists() or (not weights.fetch and _on_disk(where))
        if not present and not weights.fetch and on_hub:
            present = None
        yield Need(name, where, weights.source(where if on_hub else ""), present, f"--weights {name}=PLACE")


def _is_path(where: str) -> bool:
    """Whether the user means a path and no name on the hub, which may have a slash too."""
    return where.startswith((".", "/", "~")) or ("/" in where and Path(where).parent.is_dir())


def _on_disk(checkpoint: str) -> bool:
    """Whether the hub's files of `checkpoint` were downloaded before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return bool(HUB_NAME.fullmatch(checkpoint)) and isinstance(try_to_load_from_cache(checkpoint, "config.json"), str)
    except HFValidationError:
        # No name that the hub allows, such as "./x".
        return False
