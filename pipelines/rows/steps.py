"""A row of a paper as the commands that run it: what `--dry-run` prints and `run` calls."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pipelines.rows.needs import Places, all_needs, named_upstream, row_tracker, weights_texts
from pipelines.rows.papers import PAGES, Paper, Row, TrackerChoice, placeholders
from rvos_cache.settings import read_toml
from rvos_cache.trackers import tracker_class
from rvos_select.training.record import MEMORY_SETTINGS

DAVIS = "ref-davis17"
RUN = "{run}"
"""In the settings of a tracker: the run that the row imports, whose upstream it runs."""

Program = Literal["rvos-cache", "rvos-select"]


@dataclass(frozen=True)
class Step:
    """One command. program, words: the command line; output: what it writes; makes: what that is, for the scores."""

    program: Program
    words: tuple[str, ...]
    output: Path
    makes: Literal["cache", "run", "selections", "scores", "oracle", "masks", "zip"]
    split: str = ""
    """Dataset/split of the cache, scores, masks or zip."""
    tracker: TrackerChoice | None = None
    """Of a tracks cache: what makes it."""
    hours: float | None = 0.0
    """Of a run: its hours on one H200; None: not known."""
    training: str = ""
    """Of a run that is trained: its settings and sources, the same for trainings that take the same time."""

    def line(self) -> str:
        """The command as it is typed."""
        return shlex.join([self.program, *self.words])


def steps_of(paper: Paper, name: str, row: Row, places: Places, seed: int = 0) -> list[Step]:
    """The commands of a row, in order; caches and runs that rows share have the same place in each."""
    return list(_Steps(paper, name, row, places, seed).all())


class _Steps:
    def __init__(self, paper: Paper, name: str, row: Row, places: Places, seed: int) -> None:
        self.paper, self.name, self.row, self.places, self.seed = paper, name, row, places, seed
        self.encoder = paper.encoders[row.encoder]
        self.first = paper.trainings[row.first] if row.first else None

    def all(self) -> Iterator[Step]:
        row = self.row
        if row.way == "tune":
            yield self._tune()
        if row.way in ("tune", "import"):
            yield self._import()
        read = (
            [*(self.first.train.items() if self.first else ()), *row.train.items(), *row.valid.items()]
            if row.way == "train"
            else []
        )
        trackers: dict[str, list[str]] = {}
        for split, names in [*read, *((split, row.test) for split in row.paper)]:
            trackers[split] = list(dict.fromkeys([*trackers.get(split, ()), *names]))
        for split, names in trackers.items():
            yield self._text(split)
            for name in names:
                yield self._tracks(split, self._choice(name))
        if self.first is not None:
            yield self._train(self.first.settings, self.first.set, self.first.train, self.first_run, None)
        if row.way == "train":
            # After the user's settings: an `init` of theirs is that of the first training.
            start = [f"init={self.first_run}"] if self.first is not None else []
            yield self._train(row.settings, row.set, row.train, self.run, row.train_hours, start)
        for split in row.paper:
            yield from self._test(split)

    def _choice(self, name: str) -> TrackerChoice:
        """A tracker of the row, with the settings that the row adds; it may name the row's run in braces."""
        choice = row_tracker(self.paper, self.row, name, self.places)
        return choice.model_copy(update={"set": tuple(text.replace(RUN, str(self.run)) for text in choice.set)})

    def _tracks(self, split: str, choice: TrackerChoice) -> Step:
        out = self._tracks_path(split, choice)
        words = [
            "extract", *self._of(split), "--tracker", choice.tracker, *self._set(choice.set),
            *(["--corrupt", choice.corrupt] if choice.corrupt else []), "--out", str(out),
        ]  # fmt: skip
        return Step("rvos-cache", tuple(words), out, "cache", split, choice)

    def _text(self, split: str) -> Step:
        out = self._text_path(split)
        encoder = ["--encoder", self.encoder.encoder, *self._set(self.encoder.set)]
        return Step("rvos-cache", ("extract-text", *self._of(split), *encoder, "--out", str(out)), out, "cache", split)

    def _train(
        self,
        settings: str,
        pairs: Sequence[str],
        sources: dict[str, list[str]],
        run: Path,
        hours: float | None,
        start: Sequence[str] = (),
    ) -> Step:
        sets = [*map(self.places.filled, pairs), *self.places.overrides, *start, *self._seed()]
        words = [
            "train", *self._caches(sources), *self._caches(self.row.valid, "--valid-cache", "--valid-text"),
            "--config", _typed(PAGES / settings), *self._pairs(sets), "--out", str(run), *(["--resume"] if run.exists() else []),
        ]  # fmt: skip
        training = " ".join(
            [settings, *self.places.overrides, *(f"{split}:{'+'.join(names)}" for split, names in sources.items())]
        )
        return Step("rvos-select", tuple(words), run, "run", hours=hours, training=training)

    def _seed(self) -> list[str]:
        return [f"seed={self.seed}"] if self.seed else []

    def _tune(self) -> Step:
        (split,) = self.row.train
        pairs = [*(named_upstream(text, self.row) for text in self.row.tune), *self.places.overrides, *self._seed()]
        words = ["tune-referdino", *self._of(split), *self._set(pairs), "--out", str(self.tuned)]
        return Step("rvos-cache", tuple(words), self.tuned, "run", hours=None)

    def _import(self) -> Step:
        command, *options = self.row.importer
        source = str(self.tuned) if self.row.way == "tune" else self.places.filled(self.row.release)
        words = [
            command,
            source,
            *(self.places.filled(named_upstream(word, self.row)) for word in options),
            "--out",
            str(self.run),
        ]
        return Step("rvos-select", tuple(words), self.run, "run")

    def _test(self, split: str) -> Iterator[Step]:
        row, folder = self.row, self.folder / split.replace("/", "-")
        caches = [word for choice in row.test for word in ("--cache", str(self._tracks_path(split, self._choice(choice))))]
        selections = folder / "selections.zarr"
        text = ["--text", str(self._text_path(split))]
        module = ["--run", str(self.run)] if row.way != "select" else ["--selector", row.selector, *self._set(row.selector_set)]
        yield Step("rvos-select", ("predict", *module, *caches, *text, "--out", str(selections)), selections, "selections", split)
        root = ["--root", str(self.places.root(split.partition("/")[0]))]
        chosen = ["--selections", str(selections), *caches]
        if is_scored_by_server(split):
            masks, packed = folder / "masks", folder / "submission.zip"
            yield Step("rvos-select", ("merge", *chosen, "--out", str(masks), *row.policy), masks, "masks", split)
            dataset, _, name = split.partition("/")
            words = ("submit", "--predictions", str(masks), "--dataset", dataset, *root, "--split", name, "--out", str(packed))
            yield Step("rvos-select", words, packed, "zip", split)
            return
        scores, best = folder / "scores.json", folder / "oracle.json"
        yield Step("rvos-select", ("evaluate", *chosen, *root, *row.policy, "--json", str(scores)), scores, "scores", split)
        if self._has_oracle(split):
            yield Step("rvos-select", ("oracle", *caches, *root, "--json", str(best)), best, "oracle", split)

    def _has_oracle(self, split: str) -> bool:
        """Whether perfect labels can be scored: of tracks, and not of the objects of Ref-DAVIS17's annotators."""
        kinds = [tracker_class(self._choice(name).tracker) for name in self.row.test]
        return split.partition("/")[0] != DAVIS and any(getattr(kind, "channels", None) != 0 for kind in kinds)

    @property
    def folder(self) -> Path:
        """What belongs to this row alone, named by its run and by what is tested, so that other settings replace nothing."""
        row = self.row
        module = (row.selector, row.selector_set) if row.way == "select" else self.run.name
        tested = [self._choice(name).key for name in row.test]
        digest = sha256(repr((module, tested, self.encoder.key, row.policy)).encode()).hexdigest()[:10]
        return self.places.out / self.name / digest

    @property
    def run(self) -> Path:
        """The run, named by what determines it, so that rows that are trained alike share it."""
        row = self.row
        if row.way == "import":
            return self._run_of((row.way, row.release, row.importer, row.upstream))
        if row.way == "tune":
            return self._run_of((row.way, list(row.train), row.tune, row.importer, row.upstream))
        first = () if self.first is None else (self.first_run.name,)
        return self._run_of((*_content(row.settings), row.set, self._sources(row.train), self._sources(row.valid), *first))

    @property
    def first_run(self) -> Path:
        """The run of the training that comes before."""
        assert self.first is not None
        own = (*_content(self.first.settings), self.first.set, self._sources(self.first.train), self._sources(self.row.valid))
        return self._run_of(own)

    @property
    def tuned(self) -> Path:
        """The folder of `tune-referdino`."""
        return self.run.with_name(f"{self.run.name}-tuned")

    def _run_of(self, own: tuple[Any, ...]) -> Path:
        used = placeholders(weights_texts(self.paper, self.row, self.places))
        weights = sorted((name, place) for name, place in self.places.weights.items() if name in used)
        # A run that is continued may have other values of these.
        overrides = [pair for pair in self.places.overrides if pair.partition("=")[0] not in MEMORY_SETTINGS]
        shared = (self.encoder.key, overrides, weights, self.seed)
        return self.places.out / "runs" / f"{self.paper.name}-{sha256(repr((own, shared)).encode()).hexdigest()[:10]}"

    def _sources(self, splits: dict[str, list[str]]) -> list[tuple[str, ...]]:
        return [
            (split, *(row_tracker(self.paper, self.row, name, self.places).key for name in names))
            for split, names in splits.items()
        ]

    def _of(self, split: str) -> list[str]:
        dataset, _, name = split.partition("/")
        return ["--dataset", dataset, "--root", str(self.places.root(dataset)), "--split", name]

    def _set(self, pairs: Sequence[str]) -> list[str]:
        return self._pairs(map(self.places.filled, pairs))

    @staticmethod
    def _pairs(pairs: Sequence[str] | Iterator[str] | map[str]) -> list[str]:
        return [word for pair in pairs for word in ("--set", pair)]

    def _caches(self, sources: dict[str, list[str]], cache: str = "--cache", text: str = "--text") -> list[str]:
        words = []
        for split, names in sources.items():
            for name in names:
                words += [cache, str(self._tracks_path(split, self._choice(name)))]
            words += [text, str(self._text_path(split))]
        return words

    def _tracks_path(self, split: str, choice: TrackerChoice) -> Path:
        return self.places.out / "cache" / split / f"{choice.key}.zarr"

    def _text_path(self, split: str) -> Path:
        return self.places.out / "cache" / split / f"text-{self.encoder.key}.zarr"


def _content(settings: str) -> tuple[str, dict[str, Any]]:
    """A file of training settings: its name and what it has, so that an edited file trains anew."""
    return settings, read_toml(PAGES / settings)


def _typed(path: Path) -> str:
    """`path` as it is typed in the working folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def is_scored_by_server(split: str) -> bool:
    """Whether the ground truth of `<dataset>/<split>` is hidden, so that a server scores its masks."""
    dataset, _, name = split.partition("/")
    known = all_needs().datasets
    return dataset in known and name in known[dataset].servers
