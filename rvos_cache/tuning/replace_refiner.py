"""`rvos-cache replace-refiner`: a DVIS++ folder with the temporal refiner that a run of `pipelines.dervos_refiner` trained."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.pretrained import CHECKPOINT_FOLDERS, resolve_checkpoint
from rvos_cache.system.files import copy_folder, new_folder, write_json
from rvos_cache.system.text_files import read_text
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.dvis.checkpoint import HEAD_FILE, head_hash, load_dvis
from rvos_cache.trackers.dvis.head import DvisHead
from rvos_cache.trackers.dvis.queries import KIND
from rvos_cache.trackers.dvis.refiner import PREFIX
from rvos_cache.tuning import state

RECORD = "conversion.json"


@dataclass(frozen=True)
class Replacement:
    """The result of replacing a refiner.

    step: steps that trained it; replaced: names of the tensors that differ from the earlier ones; same: names of its other tensors;
    before, after: digests of `HEAD_FILE`.
    """

    step: int
    replaced: tuple[str, ...]
    same: tuple[str, ...]
    before: str
    after: str


def replace_refiner(dvis: str, run: Path, out: Path) -> Replacement:
    """Write to the folder `out` the checkpoint `dvis` with the refiner of the tuning run `run`, as it was saved last. It warns where
    the run has not taken all its steps.

    Raises InputError if `out` exists, `run` is no run that trains a refiner or has saved no state, or it was trained from other weights
    than those of `dvis`.
    """
    import torch
    from safetensors.torch import save_file

    if out.exists():
        raise InputError(f"{out}: already exists; choose another folder or remove it")
    give = "give the --out of python -m pipelines.dervos_refiner"
    record = state.read_record(run)
    if record.get("trains") != state.REFINER:
        raise InputError(f"{run}: is a tuning run of another model; {give}")
    step = state.saved_step(run)
    if not step:
        raise InputError(f"{run}: no step has been saved yet; tune first, or give a lower --set save_every")
    folder = Path(resolve_checkpoint(dvis))
    if not folder.is_dir():
        raise InputError(
            f"{KIND} {dvis!r}: there is no such folder, nor one in {CHECKPOINT_FOLDERS}; give one that rvos-cache convert-dvis wrote"
        )
    planned = state.steps_of_stage_0(record)
    if step < planned:
        warnings.warn(
            f"{run}: is not finished: {step} of {planned} steps; to finish it run its command again, then replace the refiner again",
            stacklevel=2,
        )
    segmenter, head = load_dvis(dvis)
    own = {**segmenter.weight_hashes(), **head_hash(head)}
    started = {value for name, value in record["checkpoint"].items() if name != "beit3"}
    if set(own.values()) != started:
        raise InputError(
            f"{dvis}: is not the checkpoint that the refiner of {run} was trained from, {record['settings']['dvis']}"
        )
    tensors = {name: tensor.cpu() for name, tensor in head.official().items()}
    trained = read_tensors(run / state.LAST / state.TRAINED, state.HOW_TO_FIX)
    refiner = {name: tensor for name, tensor in trained.items() if name.startswith(PREFIX)}
    changed = tuple(
        sorted(n for n, t in refiner.items() if n in tensors and t.shape == tensors[n].shape and not torch.equal(t, tensors[n]))
    )
    try:
        new = DvisHead.from_official({**{n: t for n, t in tensors.items() if not n.startswith(PREFIX)}, **refiner})
    except InputError as error:
        raise InputError(f"{run / state.LAST / state.TRAINED}: {error}") from error
    same = tuple(sorted(name for name in tensors if name.startswith(PREFIX) and name not in changed))
    result = Replacement(step, changed, same, head_hash(head)[HEAD_FILE], head_hash(new)[HEAD_FILE])
    with state.storing(out), new_folder(out) as target:
        copy_folder(folder, target)
        # The copies may be read-only, as the files of a shared checkpoint are.
        (target / HEAD_FILE).unlink()
        save_file({name: tensor.contiguous() for name, tensor in new.official().items()}, target / HEAD_FILE, {"format": "pt"})
        replaced = {"run": str(run), "step": step, "before": result.before, "after": result.after, "tensors": changed, **record}
        content = {**_conversion(folder), "refiner": replaced}
        (target / RECORD).unlink(missing_ok=True)
        write_json(target / RECORD, content)
    return result


def _conversion(folder: Path) -> dict[str, Any]:
    """The record of a conversion in a checkpoint folder, empty if it has none."""
    try:
        content = json.loads(read_text(folder / RECORD))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
