"""Convert a released ReferDINO checkpoint to the folder that `gdino-queries` reads as `checkpoint`.

Config and tokenizer are those of a GroundingDINO of transformers. Every tensor is converted, compared with the copy of it that is,
or listed; a missing or unknown tensor, or one of another shape, is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.pretrained import load_frozen
from rvos_cache.system.files import new_folder, write_json
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.grounding_dino import load_tokenizer
from rvos_cache.trackers.referdino import names
from rvos_cache.trackers.referdino.head import PREFIXES, HeadSizes, ReferDinoHead
from rvos_cache.trackers.referdino.lora import lora_layers
from rvos_cache.trackers.referdino.stages import STAGE1, FourStageGroundingDino
from rvos_cache.trackers.referdino.upstream import HEAD_FILE, RECORD_FILE

NESTED = "model_state_dict"
"""Key of the tensors in a file that ReferDINO's trainers wrote."""
ENHANCER = "temporal_decoder."
"""Prefix of the released tensors of the enhancer, one copy for each layer of the decoder."""
GIVE = "give a checkpoint of ReferDINO (.pth)"
SAME = 1e-3
"""Largest relative difference of weights that count as those of the given GroundingDINO."""


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    folder: what was written; sizes: of the head; tensors: number of the file's tensors in each of `names.GROUPS`; copies: number of
    those that repeat another one; unread: names of those that neither model has, which were left out; untrained: number of those of
    an enhancer that was never trained, which were left out too.
    """

    folder: Path
    sizes: HeadSizes
    tensors: dict[str, int]
    copies: int
    unread: tuple[str, ...]
    untrained: int = 0


def convert_referdino(checkpoint: Path | str, grounding: str, out: Path | str) -> Conversion:
    """Convert a checkpoint file to the folder `out`; only tensors are read from the file, no code is run.

    grounding: the GroundingDINO of transformers that it was trained from, a hub name or a folder. The enhancer of a checkpoint of
    images (`coco_*`, `a2d_*`) was never trained, and `out` has none.
    Raises InputError if `out` exists, if the file is not a complete checkpoint of ReferDINO for that GroundingDINO, if copies of one
    tensor differ, or if its weights contain the product of LoRA already.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists():
        raise InputError(f"{out}: already exists; choose another folder or remove it")
    state = read_released(checkpoint)
    try:
        tokenizer = load_tokenizer(grounding, "grounding checkpoint", "grounding")
        model = load_grounding(grounding)
    except InputError as error:
        # It is an option of the command, no setting.
        raise InputError(str(error).replace("--set grounding=", "--grounding ")) from error
    try:
        _check_finite(state)
        names.check_released(state)
        base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        head = load_released(model, state)
        check_lora(model, state)
        names.check_not_merged(state, base)
        warn_of_other_weights(state, base, grounding)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    counts = names.counts(state)
    copies = [name for name in state if is_copy(name, state)]
    unread, untrained = tuple(sorted(name for name in state if is_unread(name, state))), 0
    if head.enhancer.is_untrained():
        head = head.without_enhancer()
        untrained = sum(name.startswith(ENHANCER) for name in state)
    with new_folder(out) as folder:
        record = {"source": checkpoint.name, "grounding": grounding, "tensors": counts, "copies": len(copies), "unread": unread}
        write_upstream(folder, model, tokenizer, head, {**record, "untrained": untrained})
    return Conversion(out, head.sizes, counts, len(copies), unread, untrained)


def read_released(checkpoint: Path | str) -> dict[str, Tensor]:
    """The tensors of a released file, under their released names. Raises InputError if it holds anything but tensors and numbers."""
    return read_tensors(checkpoint, GIVE, nested=NESTED, numpy_scalars=True)


def load_grounding(grounding: str) -> Any:
    """transformers' GroundingDINO by hub name or folder, on the CPU, with the norm of the first stage, which it may lack."""
    what = "grounding checkpoint"
    model: Any = load_frozen(FourStageGroundingDino, grounding, what, unread=(STAGE1,), setting="grounding")
    return model.cpu()


def write_upstream(folder: Path, model: Any, tokenizer: Any, head: ReferDinoHead, record: Mapping[str, Any]) -> None:
    """Write what `gdino-queries` reads to the existing folder: model, tokenizer, head, and `record`, what it was made from."""
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({name: tensor.contiguous() for name, tensor in head.state().items()}, folder / HEAD_FILE, {"format": "pt"})
    write_json(folder / RECORD_FILE, dict(record))


def load_released(model: Any, state: Mapping[str, Tensor]) -> ReferDinoHead:
    """Load released tensors into a `FourStageGroundingDino`, LoRA merged, and return the head of them.

    Raises InputError naming a tensor that is unknown, missing, or of a shape that the model does not have.
    """
    head = ReferDinoHead.from_official(state)
    converted, own = names.hf_state(state), model.state_dict()
    for name in sorted(converted.keys() | own.keys()):
        released = names.in_released(name)
        if name not in own:
            raise InputError(
                f"the tensor {released!r} does not belong to the GroundingDINO of --grounding; give the one it was trained from"
            )
        if name not in converted:
            # GroundingDINO does not read the last norm of Swin.
            if released is not None:
                raise InputError(f"the tensor {released!r} is missing; give a complete checkpoint of ReferDINO")
        elif converted[name].shape != own[name].shape:
            raise InputError(
                f"{released!r} gives {name} {tuple(converted[name].shape)}, --grounding has {tuple(own[name].shape)}; give the "
                "GroundingDINO it was trained from (grounding-dino-tiny for Swin-T, grounding-dino-base for Swin-B)"
            )
    model.load_state_dict({**own, **converted})
    return head


def check_lora(model: Any, state: Mapping[str, Tensor]) -> None:
    """Raises InputError for a layer of the GroundingDINO `model` that has LoRA in every release, and none in `state`.

    Every released configuration adapts the decoder; the encoder too, or not at all (`enc_lora: false` of a2d_swint).
    """
    released = {name: str(names.in_released(f"{name}.weight")).removesuffix(".weight") for name in lora_layers(model)}
    absent = [layer for layer in released.values() if f"{layer}.lora_A" not in state]
    of_encoder = [layer for layer in released.values() if layer.startswith("transformer.encoder.")]
    if absent and absent != of_encoder:
        raise InputError(
            f"the tensor '{absent[-1]}.lora_A' is missing ({len(absent)} of {len(released)} layers lack LoRA, without which scores are "
            "wrong); give a complete checkpoint of ReferDINO"
        )


def warn_of_other_weights(state: Mapping[str, Tensor], base: Mapping[str, Tensor], grounding: str) -> None:
    """Warn if the weights under LoRA, which ReferDINO does not train, are not those of GroundingDINO.

    state: released tensors; base: transformers' tensors of `grounding`. `names.check_not_merged` can then not know whether the
    weights contain the product of LoRA.
    """
    changed = total = 0.0
    for name in state:
        target = names.in_transformers(f"{name.removesuffix('.lora_A')}.weight")
        own = state.get(f"{name.removesuffix('.lora_A')}.weight")
        if name.endswith(".lora_A") and own is not None and target and target[0] in base:
            known = base[target[0]].double()
            changed += float((own.double() - known).square().sum())
            total += float(known.square().sum())
    if changed > SAME**2 * total:
        warnings.warn(
            f"its frozen weights are not those of --grounding {grounding}, so it is not known whether they contain the product of "
            "LoRA; give the GroundingDINO that it was trained from",
            stacklevel=3,
        )


def is_copy(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a released tensor repeats another one of `state`."""
    return names.first(name) != name and names.first(name) in state


def is_unread(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether neither transformers' model nor the head has the released tensor, nor the one that it repeats."""
    return names.is_dropped(name) and not name.startswith(tuple(PREFIXES.values())) and not is_copy(name, state)


def _check_finite(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name} holds other than finite numbers; {GIVE}")
