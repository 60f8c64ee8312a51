"""A run's folder on disk: settings, a resumable state, the best module. Tensors are safetensors, the rest is JSON."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rvos_cache.errors import InputError
from rvos_cache.seams import resolve
from rvos_cache.store import Card
from rvos_select.selectors import SELECTORS


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or not there."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def read_json(path: Path, what: str) -> Any:
    """A JSON file of a run. Raises InputError when it is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; {what}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {what}") from error


def replace_folder(target: Path, fill: Any) -> None:
    """Make a folder beside `target` with `fill(folder)` and put it in its place."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    old = target.with_name(f".{target.name}.old")
    try:
        aside.mkdir(parents=True)
        fill(aside)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.rename(target, old)
        os.rename(aside, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`<run>/last`: weights, optimiser tensors and `state`, replaced as a whole."""

    def fill(folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
        tensors = {}
        for index, held in optimizer.state_dict()["state"].items():
            for name, value in held.items():
                tensors[f"{index}.{name}"] = torch.as_tensor(value).contiguous()
        save_file(tensors, folder / "optimizer.safetensors")
        write_json(folder / "state.json", dict(state))

    replace_folder(run / "last", fill)


def has_state(run: Path) -> bool:
    """Whether there is a checkpoint to resume, also one that a kill left between the two renames."""
    return (run / "last").exists() or (run / ".last.old").exists()


def load_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put back what `save_state` wrote and return its `state`. Raises InputError when it is missing or damaged."""
    folder = run / "last"
    if not folder.exists() and (run / ".last.old").exists():
        os.rename(run / ".last.old", folder)
    state: dict[str, Any] = read_json(folder / "state.json", "nothing to resume; train without --resume")
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
        stored = load_file(folder / "optimizer.safetensors")
    except (SafetensorError, OSError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{folder}: the checkpoint does not load ({first}); train again into another --out") from error
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for name, value in stored.items():
        index, _, key = name.partition(".")
        by_parameter.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})
    return state


def run_settings(run: Path) -> dict[str, Any]:
    """`<run>/settings.json`: resolved settings, cards, versions."""
    if not run.is_dir():
        raise InputError(f"{run}: no run here; rvos-select train makes one")
    settings: dict[str, Any] = read_json(run / "settings.json", "not a training run; rvos-select train makes one")
    return settings


def run_cards(run: Path) -> dict[str, Card]:
    """The cards ("tracks", "text") of the first caches that a run was trained on."""
    cards = run_settings(run)["cards"]
    return {kind: Card.model_validate(cards[kind][0]) for kind in ("tracks", "text")}


def load_selector(run: Path) -> Any:
    """The best module of a run, in eval mode. Raises InputError when it is missing or damaged."""
    name = run_settings(run)["settings"]["selector"]
    if not (run / "best").is_dir():
        raise InputError(f"{run}/best: not found; the run has not finished an epoch: train --resume")
    read_json(run / "best/config.json", "the checkpoint is not whole: train again into another --out")
    model = resolve(SELECTORS, name, "selector").from_pretrained(str(run / "best"))
    return model.eval()
