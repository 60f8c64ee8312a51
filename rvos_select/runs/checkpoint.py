"""A run's folder on disk: settings, a resumable state, the best module. Tensors are safetensors, the rest is JSON."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.files import read_text, sync, write_json
from rvos_cache.store import Card
from rvos_cache.tensors import read_tensors
from rvos_select.paths import PathLike
from rvos_select.selectors import Selector, selector_class


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """What is written below `path` while training. Raises InputError, naming the file, when the disk refuses."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has an error of its own, and names no file.
        file, message = (error.filename, error.strerror) if isinstance(error, OSError) else (None, str(error))
        raise InputError(
            f"{file or path}: cannot be written ({message or type(error).__name__}); make room, then run the same command with "
            "--resume: the last complete checkpoint is not changed"
        ) from error


def read_json(path: Path, what: str) -> Any:
    """A JSON file of a run. Raises InputError when it is missing or damaged."""
    try:
        return json.loads(read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; {what}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); {what}") from error


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder beside `target` with `fill(folder)`, bring it to the disk and put it in its place.

    A kill leaves `target` whole, or `.<name>.old` whole, which `restore_folder` puts back. Raises InputError, with `target`
    as it was, when the disk refuses.
    """
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    old = target.with_name(f".{target.name}.old")
    with storing(target):
        try:
            aside.mkdir(parents=True)
            fill(aside)
            for path in (*aside.rglob("*"), aside):
                sync(path)
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                os.rename(target, old)
            os.rename(aside, target)
            sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            if old.exists() and not target.exists():
                os.rename(old, target)
            shutil.rmtree(aside, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Undo what a kill inside `replace_folder` left: put an old folder back, remove half-written ones."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        os.rename(old, target)
    for path in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(path, ignore_errors=True)


def save_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`<run>/last`: weights, optimiser tensors and `state`, replaced as a whole."""

    def fill(folder: Path) -> None:
        save_file({name: value.clone().contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
        tensors = {}
        for index, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"{index}.{name}"] = torch.as_tensor(value).contiguous()
        save_file(tensors, folder / "optimizer.safetensors")
        write_json(folder / "state.json", dict(state))

    replace_folder(run / "last", fill)


def load_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put back what `save_state` wrote and return its `state`. Raises InputError when it is missing or damaged."""
    folder = run / "last"
    state: dict[str, Any] = read_json(folder / "state.json", "nothing to resume; train without --resume")
    how_to_fix = "train again into another --out"
    weights = read_tensors(folder / "model.safetensors", how_to_fix)
    stored = read_tensors(folder / "optimizer.safetensors", how_to_fix)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{folder}: the checkpoint does not load ({first}); {how_to_fix}") from error
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for name, value in stored.items():
        index, _, key = name.partition(".")
        by_parameter.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})
    return state


def run_settings(run: PathLike) -> dict[str, Any]:
    """`<run>/settings.json`: resolved settings, cards, versions."""
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no run here; rvos-select train makes one")
    settings: dict[str, Any] = read_json(run / "settings.json", "not a training run; rvos-select train makes one")
    return settings


def run_cards(run: PathLike) -> dict[str, Card]:
    """The cards ("tracks", "text") of the first caches that a run was trained on."""
    cards = run_settings(run)["cards"]
    return {kind: Card.model_validate(cards[kind][0]) for kind in ("tracks", "text")}


def trained_cards(run: PathLike) -> list[Card]:
    """The cards of all tracks caches that a run was trained on and validated with."""
    cards = run_settings(run)["cards"]
    return [Card.model_validate(card) for card in (*cards["tracks"], *cards.get("valid_tracks", ()))]


def load_selector(run: PathLike) -> Selector:
    """The best module of a run, in eval mode; its frozen parts are loaded by `bind`, and must be those of the run.

    Raises InputError when it is missing or damaged.
    """
    run = Path(run)
    settings = run_settings(run)
    restore_folder(run / "best")
    if not (run / "best").is_dir():
        raise InputError(f"{run}/best: not found; the run has not finished an epoch: train --resume")
    read_json(run / "best/config.json", "the checkpoint is not whole: train again into another --out")
    selector = selector_class(settings["settings"]["selector"]).from_pretrained(str(run / "best"))
    selector.recorded_digests = settings.get("frozen", {})
    return selector.eval()
