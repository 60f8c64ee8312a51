"""What rows need on disk: datasets and weights, where they are looked for, and where to fetch them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pipelines.rows.papers import PAGES, PLACEHOLDER, EncoderChoice, Paper, Row, TrackerChoice, placeholders
from rvos_cache.errors import InputError
from rvos_cache.pretrained import resolve_checkpoint
from rvos_cache.settings import Settings, build, read_toml

NEEDS = PAGES / "needs.toml"


class Dataset(Settings):
    """A benchmark."""

    fetch: str
    """Where it is published."""
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

    def tracker(self, paper: Paper, name: str) -> TrackerChoice:
        """The tracker `name` of a paper, with the settings that replace its own."""
        choice = paper.trackers[name]
        return choice.model_copy(update={"set": (*choice.set, *self.tracker_set.get(name, ()))})

    def root(self, dataset: str) -> Path:
        """Folder of a dataset."""
        return self.roots.get(dataset, Path("data") / dataset)

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
    """A dataset or weights that a row needs. name: as in needs.toml; where: its place; fetch: how to get it; found: whether it is
    there, None for weights of the hub that are fetched when they are first used."""

    name: str
    where: str
    fetch: str
    found: bool | None


def needs_of(paper: Paper, row: Row, places: Places) -> list[Need]:
    """Every dataset and all weights that a row needs, each once."""
    return [*_datasets(paper, row, places), *_weights(paper, row, places)]


def choices_of(paper: Paper, row: Row, places: Places) -> list[TrackerChoice | EncoderChoice]:
    """The trackers and the encoder of a row."""
    first = paper.trainings[row.first].train.values() if row.first else ()
    names = dict.fromkeys([*row.test, *(n for ns in (*first, *row.train.values(), *row.valid.values()) for n in ns)])
    return [*(places.tracker(paper, name) for name in names), *([paper.encoders[row.encoder]] if row.encoder else [])]


def _datasets(paper: Paper, row: Row, places: Places) -> Iterator[Need]:
    first = paper.trainings[row.first].train if row.first else {}
    for name in dict.fromkeys(key.split("/")[0] for key in (*row.train, *first, *row.valid, *row.paper)):
        root = places.root(name)
        yield Need(name, str(root), all_needs().datasets[name].fetch, root.is_dir())


def _weights(paper: Paper, row: Row, places: Places) -> Iterator[Need]:
    texts = [text for choice in choices_of(paper, row, places) for text in choice.set]
    texts += paper.trainings[row.first].set if row.first else ()
    for name in placeholders([*texts, *row.set, *row.selector_set, *row.tune, *row.importer, row.release]):
        if name == "run":
            continue
        weights, where = all_needs().weights[name], places.checkpoint(name)
        found = Path(resolve_checkpoint(where)).exists() or (_on_disk(where) if not weights.fetch else False)
        fetch = weights.fetch or f"https://huggingface.co/{weights.checkpoint}, fetched when it is first used"
        yield Need(name, where, fetch, found or (None if not weights.fetch else False))


def _on_disk(checkpoint: str) -> bool:
    """Whether the hub's files of `checkpoint` were downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(checkpoint, "config.json"), str)
