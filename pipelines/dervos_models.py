"""DeRVOS's stage one on its pages: the rows of the paper, the frozen models, and the options that say where they are."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipelines.rows.needs import all_needs
from pipelines.rows.papers import PAGES, Paper, Row, placeholders, read_paper
from rvos_cache.errors import InputError
from rvos_cache.extraction import Check
from rvos_cache.pretrained import resolve_checkpoint
from rvos_cache.settings import merge, parse_overrides
from rvos_cache.store import Card, text_path, tracks_path
from rvos_cache.system.text_files import read_text
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import trains_on

PAPER = PAGES / "papers/dervos.toml"
FRAMES = {"square": 320, "resample": "bicubic"}
"""What BEiT-3 reads. Source: the summary, BEiT-3's code."""
OTHER = "the row's numbers are of {}"
WIDTHS = {"beit3_base": 768, "beit3_large": 1024}
"""Channels of BEiT-3, by its name in needs.toml."""
WORDS = {"beit3": {"normalise": "lower"}, "roberta": {"normalise": "lower"}}
"""Settings of the text encoders beside their checkpoints. Source: the code of MeViS's LMPM, of whose sentences the rows are."""


@dataclass(frozen=True)
class Models:
    """The checkpoints that the options name, None where one was not given. tracker, frames: settings that replace the row's."""

    dvis: str | None
    beit3: str | None
    vita: str | None
    mask2former: str | None
    bert: str
    tracker: dict[str, Any]
    frames: dict[str, Any]
    jobs: int

    def extraction(self, published: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `extract_all` for a row. Raises InputError when the option of a checkpoint is missing."""
        tracker, encoder = published.get("tracker", "dvis"), published.get("encoder", "beit3")
        # The tracker dvis links the frames of a plain Mask2Former too.
        option = published.get("option", tracker)
        checkpoints = {"dvis": self.dvis, "vita": self.vita, "mask2former": self.mask2former, "beit3": self.beit3}
        for name in (option, encoder):
            if checkpoints.get(name, self.bert) is None:
                raise InputError(f"this row is of {published['upstream']}: it needs the option --{name} FOLDER")
        own = {"checkpoint": checkpoints[option]}
        overrides = merge(merge(own, parse_overrides(published.get("tracker_set", ()))), self.tracker)
        return {
            "tracker": tracker,
            "encoder": encoder,
            "overrides": overrides,
            "text_overrides": {**WORDS[encoder], "checkpoint": checkpoints.get(encoder, self.bert)},
            "also": {"frames": merge(FRAMES, self.frames)} if encoder == "beit3" else {},
            "jobs": self.jobs,
        }

    def name(self, published: dict[str, Any]) -> str:
        """Of the folder of the caches: rows of one upstream and the same settings of the tracker share it."""
        values = self.extraction(published)["overrides"]
        names = [text.partition("=")[0] for text in published.get("tracker_set", ())]
        return "-".join([Path(values["checkpoint"]).name, *(f"{name}_{values[name]}" for name in names)])

    def changes(self, settings: Sequence[str]) -> str:
        """What the command line replaced of a row, "" where it is run as it is. settings: of --set."""
        own = [f"--set {text}" for text in settings]
        for option, values in (("--tracker-set", self.tracker), ("--frames-set", self.frames)):
            own += [f"{option} {name}={value}" for name, value in values.items()]
        return " ".join(own)


@dataclass(frozen=True)
class Caches:
    """The caches of a split under the folder `base`, as `extraction` writes them."""

    base: Path
    extraction: dict[str, Any]

    def tracks(self, split: str) -> list[Path]:
        """The tracks, and the frames where the row reads them."""
        return [tracks_path(self.base, split, name) for name in (self.extraction["tracker"], *self.extraction["also"])]

    def texts(self, split: str) -> list[Path]:
        """The words."""
        return [text_path(self.base, split, self.extraction["encoder"])]


def warn_of_other_weights(published: dict[str, Any], extraction: dict[str, Any]) -> None:
    """Warn where a checkpoint is not of the kind that the row names, as far as the files of its folder tell."""
    upstream, words = published["weights"]
    tracker, encoder = (Path(resolve_checkpoint(extraction[part]["checkpoint"])) for part in ("overrides", "text_overrides"))
    if upstream.startswith("dvis"):
        backbone = _content(tracker / "config.json").get("backbone_config", {}).get("model_type")
        if backbone is not None and (backbone == "resnet") != upstream.startswith("dvis_r50"):
            warnings.warn(f"{tracker}: its backbone is {backbone}; {OTHER.format(published['upstream'])}", stacklevel=2)
        replaced = "refiner" in _content(tracker / "conversion.json")
        if replaced != upstream.endswith("_refined"):
            what = "was replaced by that of a stage 0" if replaced else "was not replaced: run stage 0 and replace-refiner first"
            warnings.warn(f"{tracker}: its refiner {what}; {OTHER.format(published['upstream'])}", stacklevel=2)
    width = _content(encoder / "config.json").get("width") if words in WIDTHS else None
    if width in WIDTHS.values() and width != WIDTHS[words]:
        warnings.warn(f"{encoder}: BEiT-3 of {width} channels; {OTHER.format(published['upstream'])}", stacklevel=2)


def _content(path: Path) -> dict[str, Any]:
    """What a JSON file of a checkpoint holds, {} if it cannot be read: its loader says what is wrong with it."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def changed(title: str, changes: str) -> str:
    """The title of a row's scores, marked where settings of the row were replaced."""
    return f"{title}, changed settings" if changes else title


def run_with(changes: str) -> str:
    """What a page prints before it names its report, so that nobody compares another model with the paper's number unawares."""
    return f"not the row as it is, run with {changes}; " if changes else ""


def fits(settings: TrainSettings, run: Path) -> Check:
    """A `check` of `extract_all`: whether `run` can be trained on the caches that are about to be extracted."""
    check = trains_on(settings, run)

    def with_own_options(tracks: Sequence[Card], text: Card) -> None:
        try:
            check(tracks, text)
        except InputError as error:
            message = str(error).replace("--tracker frames --set square=", "--frames-set square=")
            raise InputError(message.replace("--set pool=", "--tracker-set pool=")) from error

    return with_own_options


def dervos_models(page: Callable[..., None], has_rows: bool = True) -> Callable[..., None]:
    """--dvis, --beit3, --vita, --mask2former, --bert, --jobs, --tracker-set and --frames-set, which the page takes as one argument,
    `models`. has_rows: whether the page has the rows of VITA, Mask2Former and BERT, else their options are hidden."""

    @click.option(
        "--dvis",
        help="A folder that rvos-cache convert-dvis wrote." + " The rows of VITA and of Mask2Former need none." * has_rows,
    )
    @click.option("--beit3", help="A folder that rvos-cache convert-beit3 wrote." + " BERT's row needs none." * has_rows)
    @click.option("--vita", help="A folder that rvos-cache convert-vita wrote, for VITA's row.", hidden=not has_rows)
    @click.option("--mask2former", help="A hub name or a folder of transformers, for Mask2Former's row.", hidden=not has_rows)
    @click.option(
        "--bert",
        default="google-bert/bert-base-uncased",
        show_default=True,
        help="A hub name or a folder, for BERT's row.",
        hidden=not has_rows,
    )
    @click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes that extract.")
    @click.option("--tracker-set", multiple=True, metavar="K=V", help="A setting of the tracker, e.g. max_tracks=100.")
    @click.option("--frames-set", multiple=True, metavar="K=V", help="A setting of the tracker `frames`, e.g. square=224.")
    @functools.wraps(page)
    def with_models(
        *args: Any,
        dvis: str | None,
        beit3: str | None,
        vita: str | None,
        mask2former: str | None,
        bert: str,
        jobs: int,
        tracker_set: tuple[str, ...],
        frames_set: tuple[str, ...],
        **others: Any,
    ) -> None:
        own = (parse_overrides(tracker_set), parse_overrides(frames_set))
        page(*args, models=Models(dvis, beit3, vita, mask2former, bert, *own, jobs), **others)

    return with_models


def all_rows() -> dict[str, dict[str, Any]]:
    """Row `<table>.<row>` -> what the pages read of it.

    "paper": dataset/split -> the published numbers; with "reason" there is no more. Else "set": settings of training; "tracker",
    "encoder", "tracker_set": of stage one; "option": of the page that names the tracker's checkpoint; "upstream": what options name.
    """
    paper = read_paper(PAPER)
    return {whole.partition(".")[2]: _values(paper, row) for whole, row in paper.rows()}


def _values(paper: Paper, row: Row) -> dict[str, Any]:
    if row.reason:
        return {"paper": row.paper, "reason": row.reason}
    name = row.test[0]
    choice, encoder = paper.trackers[name], paper.encoders[row.encoder]
    words = next(weights for weights in placeholders(encoder.set))
    return {
        "paper": row.paper,
        "set": list(row.set),
        "tracker": choice.tracker,
        "tracker_set": [
            *(pair for pair in choice.set if not placeholders([pair])),
            *(text.removeprefix(f"{name}.") for text in row.tracker_set),
        ],
        "option": name,
        "encoder": encoder.encoder,
        "weights": (row.upstream, words),
        "upstream": "; ".join(all_needs().weights[weights].what for weights in (row.upstream, words)),
    }


def published_row(row: str, dataset: str) -> dict[str, Any]:
    """The row `<table>.<row>` of the paper, see `all_rows`. Raises InputError when there is none that is tested on `dataset`, or it is
    another system's."""
    rows = all_rows()
    if row in rows and "reason" in rows[row]:
        raise InputError(f"{PAPER}: the row {row!r} cannot be trained here: {rows[row]['reason']}")
    possible = [
        name for name, values in rows.items() if "set" in values and any(s.startswith(f"{dataset}/") for s in values["paper"])
    ]
    if row not in possible:
        raise InputError(f"{PAPER}: no row {row!r} of {dataset}; there are: {', '.join(possible)}")
    return rows[row]
