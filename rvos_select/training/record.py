"""What a run writes about itself: its settings and caches, its metrics, its TensorBoard curves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rvos_cache.differences import differences, first_difference
from rvos_cache.errors import InputError
from rvos_cache.settings import Settings
from rvos_cache.store import Card, provenance
from rvos_cache.system.files import append_line, read_lines, write_bytes, write_json
from rvos_cache.system.locks import is_unwritten
from rvos_select.data.epochs import Grouping, items_per_epoch, set_sizes
from rvos_select.data.sources import Sources
from rvos_select.runs.checkpoint import read_json, storing
from rvos_select.runs.metrics import METRICS, read_metrics
from rvos_select.runs.seen import check_data, write_data
from rvos_select.training.settings import TrainSettings

SETTINGS = "settings.json"
MEMORY_SETTINGS = ("micro_batch", "config.checkpointing", "resident", "cuda_graphs")
"""Settings that a run may be resumed with other values of: they change how a step is computed, and not what."""


def grouping_of(settings: TrainSettings) -> Grouping:
    """Whether an epoch counts videos or expressions."""
    return "video" if settings.batch == "video" else "single"


def write_record(out: Path, settings: TrainSettings, sources: Sources, config: Settings, frozen: Mapping[str, str]) -> None:
    """Write settings.json, or check that the run to resume is this one. Raises InputError otherwise.

    "resolved" holds what the settings leave to the caches and to defaults: the selector's whole configuration and the
    label threshold. "sets" counts the items of each training set and those that an epoch takes, "held_out" lists the videos
    held out of the training caches, "missing" those that are left out, "frozen" has the digests of the frozen parts. data.json
    beside it has the content of every video.
    """
    sizes = set_sizes(sources.train, grouping_of(settings))
    sets = {
        name: {"weight": weight, "items": sizes.get(name, 0), "drawn": items_per_epoch(sizes.get(name, 0), weight)}
        for name, weight in sources.weights.items()
    }
    record = {
        "settings": settings.model_dump(mode="json"),
        "resolved": {"config": config.model_dump(mode="json"), "label_iou": sources.label_iou},
        "frozen": dict(frozen),
        "sets": sets,
        "held_out": sources.held_out,
        "missing": sources.missing,
        "cards": sources.cards,
        **provenance(),
    }
    path = out / SETTINGS
    if not path.exists():
        if out.exists() and not is_unwritten(out):
            raise InputError(f"{out}: exists and is not a run; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        write_data(out, sources.contents)
        return
    stored = read_json(path, "choose another --out")
    _check_same_settings(out, record, stored, settings.optim.schedule in ("cosine", "step"))
    for kind, cards in sources.cards.items():
        _check_same_caches(out, kind, cards, stored["cards"][kind])
    check_data(out, sources.contents)
    write_json(path, {**stored, "settings": record["settings"]})


def check_start(out: Path, settings: TrainSettings, tracks: Sequence[Card]) -> None:
    """Raises InputError where the run in `out`, if there is one, was started with other settings, or on tracks of the trackers of the
    cards `tracks` with other settings than theirs: what training would say after the caches are made."""
    if not (out / SETTINGS).exists():
        return
    stored = read_json(out / SETTINGS, "choose another --out")
    _check_same_settings(
        out, {**stored, "settings": settings.model_dump(mode="json")}, stored, settings.optim.schedule in ("cosine", "step")
    )
    settings_of = {card.producer: card.settings for card in tracks}
    for card in stored["cards"]["tracks"]:
        now_set = settings_of.get(card["producer"], card["settings"])
        for name, before, now in differences(card["settings"], now_set, "settings"):
            raise InputError(_other_caches(out, "tracks", name, before, now))


def _other_caches(out: Path, kind: str, name: str, before: Any, now: Any) -> str:
    return f"{out}: was started with {kind} caches of {name} = {before!r}, now it is {now!r}; give the same, or another --out"


def _check_same_settings(out: Path, record: Mapping[str, Any], stored: Mapping[str, Any], fixed_epochs: bool) -> None:
    """fixed_epochs: the schedule runs over all steps, so more epochs would change those already trained.

    Raises InputError, naming the setting, for another value, except of those that change the memory and not the result.
    """
    new, old = ({**r["settings"], "resolved": r.get("resolved", {}), "frozen": r.get("frozen", {})} for r in (record, stored))
    for name, before, now in differences(old, new):
        if (name != "epochs" or fixed_epochs) and name.removeprefix("resolved.") not in MEMORY_SETTINGS:
            raise InputError(f"{out}: was started with {name} = {before!r}, now it is {now!r}; give the same, or another --out")


def _check_same_caches(out: Path, kind: str, new: Sequence[dict[str, Any]], old: Sequence[dict[str, Any]]) -> None:
    """Raises InputError, naming the field, when the cards of a run to resume are not those it was started with."""
    if len(new) != len(old):
        raise InputError(
            f"{out}: was started with {len(old)} {kind} caches, now there are {len(new)}; give the same, or another --out"
        )
    for ours, theirs in zip(map(Card.model_validate, new), map(Card.model_validate, old)):
        for field in ours.differences(theirs):
            name, before, now = first_difference(theirs.value(field), ours.value(field), field)
            raise InputError(_other_caches(out, kind, name, before, now))


class Metrics:
    """metrics.jsonl, a line per epoch, and the same numbers as TensorBoard curves. epoch: the last one that is complete."""

    def __init__(self, out: Path, epoch: int) -> None:
        self.out, self.epoch = out, epoch

    def __enter__(self) -> Metrics:
        with storing(self.out):
            self._drop_later_rows()
        self._board = _tensorboard(self.out / "tensorboard", self.epoch)
        self._writer = self._board.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._board.__exit__(*error)

    def add(self, row: Mapping[str, Any]) -> None:
        """One epoch. Raises InputError when a write fails."""
        with storing(self.out / "tensorboard"):
            for name, value in row.items():
                if isinstance(value, float):
                    self._writer.add_scalar(name, value, row["epoch"])
        with storing(self.out / METRICS):
            append_line(self.out / METRICS, json.dumps(row).encode())

    def _drop_later_rows(self) -> None:
        # A kill between the line and the checkpoint leaves the line of an epoch that is trained again.
        path = self.out / METRICS
        if path.exists():
            kept = [line for line, row in zip(read_lines(path), read_metrics(self.out)) if row["epoch"] <= self.epoch]
            write_bytes(path, b"".join(line + b"\n" for line in kept))


@contextmanager
def _tensorboard(folder: Path, epoch: int) -> Iterator[Any]:
    """A writer of TensorBoard curves that continue after `epoch`. Raises InputError when a write fails."""
    from torch.utils.tensorboard import SummaryWriter

    def ignore_os_errors(fault: threading.ExceptHookArgs) -> None:
        # The writer's own thread prints the error that it also raises here.
        if not isinstance(fault.exc_value, OSError):
            hook(fault)

    hook, threading.excepthook = threading.excepthook, ignore_os_errors
    try:
        with storing(folder):
            writer = SummaryWriter(str(folder), purge_step=epoch + 1)
        yield writer
        with storing(folder):
            writer.close()
    finally:
        threading.excepthook = hook
