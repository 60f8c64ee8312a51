"""The folder of a tuning run: tune.json (settings and versions), metrics.jsonl, last/ (to resume), and of ReferDINO's upstream/ (for
`gdino-queries`).

Tensors are safetensors, the rest is JSON, so that nothing that is read can run code.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from rvos_cache.differences import differences
from rvos_cache.errors import InputError
from rvos_cache.store import provenance
from rvos_cache.system.counts import planned_steps
from rvos_cache.system.files import append_line, read_lines, replace_folder, restore, write_bytes, write_json
from rvos_cache.system.locks import is_unwritten
from rvos_cache.system.text_files import read_text
from rvos_cache.tensors import read_tensors

RECORD, METRICS, LAST, UPSTREAM = "tune.json", "metrics.jsonl", "last", "upstream"
TRAINED, OPTIMIZER, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's tensors of a parameter."""
FREE = ("root", "roots", "settings.checkpointing", "settings.save_every", "settings.steps", "settings.epochs")
"""Values that a run may be resumed with others of: they do not change its steps."""
REFINER = "refiner of DVIS++"
"""`trains` in the record of a run that `rvos-cache replace-refiner` reads."""
LISTED = 8
"""Differences that an error lists at most."""
HOW_TO_FIX = "tune again into another --out"


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write tune.json, or check that the run there is the same. Raises InputError for another run."""
    path = out / RECORD
    values = json.loads(json.dumps(dict(record)))
    if not path.exists():
        if out.exists() and not is_unwritten(out):
            raise InputError(f"{out}: exists and is not a tuning run; choose another --out")
        write_json(path, {**values, **provenance()})
        return
    stored = read_record(out)
    check_same(out, values)
    write_json(path, {**stored, "settings": values["settings"]})


def check_same(out: Path, values: Mapping[str, Any]) -> None:
    """Raises InputError where the run in `out`, if there is one, was started with other `values` of its record."""
    if not (out / RECORD).exists():
        return
    stored = read_record(out)
    other = [one for one in differences({key: stored.get(key) for key in values}, values) if one.name not in FREE]
    if not other:
        return
    # All of them: the setting that was changed may be another than the first.
    listed = ", ".join(f"{one.name} = {one.old!r} (now {one.new!r})" for one in other[:LISTED])
    more = f" and {len(other) - LISTED} more" if len(other) > LISTED else ""
    own = [one for one in other if one.name.startswith("settings.")]
    same = " ".join(f"--set {one.name.removeprefix('settings.')}={shlex.quote(_given(one.old))}" for one in own)
    raise InputError(f"{out}: was started with {listed}{more}; give the same{f', {same}' if same else ''}, or another --out")


def _given(value: Any) -> str:
    """A value as --set takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_record(out: Path) -> dict[str, Any]:
    """What tune.json holds. Raises InputError if there is none, or it is damaged."""
    record: dict[str, Any] = _read_json(
        out / RECORD, "give the --out of a tuning run (rvos-cache tune-referdino, or python -m pipelines.dervos_refiner)"
    )
    return record


def save_state(
    out: Path, tensors: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Replace last/ as a whole. tensors: what is not in the checkpoint that the run started from, by name; step: steps done."""
    moments = {
        f"{name}.{key}": optimizer.state[parameter][key]
        for name, parameter in trained.items()
        for key in MOMENTS
        if parameter in optimizer.state
    }
    with storing(out), replace_folder(out / LAST) as folder:
        for file, values in ((TRAINED, tensors), (OPTIMIZER, moments)):
            save_file({name: value.detach().cpu().contiguous().clone() for name, value in values.items()}, folder / file)
        write_json(folder / STATE, {"step": step})


def saved_step(out: Path) -> int:
    """Steps done of the state in last/, 0 if there is none yet. Raises InputError if it is damaged."""
    restore(out / LAST)
    if not (out / LAST).exists():
        return 0
    state = _read_json(out / LAST / STATE, HOW_TO_FIX)
    step = state.get("step") if isinstance(state, dict) else None
    if not isinstance(step, int) or step < 0:
        raise InputError(f"{out / LAST / STATE}: expected a number of steps, has {step!r}; {HOW_TO_FIX}")
    return step


def steps_of_stage_0(record: Mapping[str, Any]) -> int:
    """Steps of a whole run of stage 0 of DeRVOS, from its record."""
    settings = record["settings"]
    return planned_steps(record["items"], settings["batch_size"], settings["steps"], settings["epochs"])


def load_tensors(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy the saved tensors into `tensors`, in place. Raises InputError if they are not the same by name and shape."""
    path = out / LAST / TRAINED
    _copy(path, read_tensors(path, HOW_TO_FIX), tensors)


def load_optimizer(out: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Put the saved moments back. Raises InputError if they are not those of the trained parameters."""
    path = out / LAST / OPTIMIZER
    stored = read_tensors(path, HOW_TO_FIX)
    for name, parameter in trained.items():
        state = {"step": torch.zeros(()), **{key: torch.zeros_like(parameter) for key in MOMENTS[1:]}}
        own = {key: stored.pop(f"{name}.{key}", None) for key in MOMENTS}
        if all(value is None for value in own.values()):
            # No step has had a gradient for it, for example an expression of another kind.
            continue
        for key, value in own.items():
            if value is None or value.shape != state[key].shape:
                raise InputError(f"{path}: {name}.{key} is missing or has another shape; {HOW_TO_FIX}")
            state[key].copy_(value)
        optimizer.state[parameter] = state
    if stored:
        raise InputError(f"{path}: {next(iter(stored))} belongs to no trained parameter; {HOW_TO_FIX}")


def add_metrics(out: Path, row: Mapping[str, Any]) -> None:
    """Append a line to metrics.jsonl."""
    append_line(out / METRICS, json.dumps(dict(row)).encode())


def cut_metrics(out: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which are computed again."""
    if (out / METRICS).exists():
        lines = [line for line in read_lines(out / METRICS) if json.loads(line)["step"] <= step]
        write_bytes(out / METRICS, b"".join(line + b"\n" for line in lines))


@contextmanager
def storing(out: Path) -> Iterator[None]:
    """What is written below `out`. Raises InputError, naming the file, when the disk refuses."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has an error of its own, and names no file.
        file, message = (error.filename, error.strerror) if isinstance(error, OSError) else (None, str(error))
        raise InputError(
            f"{file or out}: cannot be written ({message or type(error).__name__}); make room and run the same command again: the "
            "last complete state is not changed"
        ) from error


def _copy(path: Path, stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name in sorted(stored.keys() | tensors.keys()):
        if name not in stored or name not in tensors or stored[name].shape != tensors[name].shape:
            raise InputError(f"{path}: {name} is missing, not of this run, or has another shape; {HOW_TO_FIX}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])


def _read_json(path: Path, how_to_fix: str) -> Any:
    try:
        return json.loads(read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; {how_to_fix}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); {how_to_fix}") from error
