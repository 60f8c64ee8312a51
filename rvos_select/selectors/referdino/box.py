"""The box head of the upstream that made a cache, with which ReferDINO's own starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.pretrained import resolve_checkpoint
from rvos_cache.store import Card

GROUNDING = "model.safetensors"
"""File of transformers' GroundingDINO. A folder that `import-referdino` or `tune-referdino` wrote has the head in another."""
BOX = re.compile(r"(?:model\.decoder\.)?bbox_embed\.(\d+)\.(.+)")
"""Names of the box head's tensors in both, one copy for each decoder layer."""
HOW_TO_FIX = "bring that checkpoint back, or --set config.box_init=random"


def first_box_head(card: Card, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the box head of the checkpoint that `card` names, of the last decoder layer.

    own: the tensors of the selector's. Raises InputError: the card names no checkpoint, it cannot be read, or has another head.
    """
    location = f"cache {card.dataset}/{card.split} of tracker {card.producer}"
    checkpoint = card.settings.get("checkpoint")
    if not checkpoint:
        # Of a tracker of one's own that writes what gdino-queries does.
        other = any(spec["name"] == "reference" for spec in card.feature_specs)
        hint = "; or --set config.box_init=random" if other else ""
        raise InputError(
            f"{location}: its card names no checkpoint, from which the box head would start; extract with --tracker gdino-queries{hint}"
        )
    path = _file(str(checkpoint))
    tensors = _box_tensors(path)
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise InputError(f"{path}: its box head has the tensors {_shapes(tensors)}, expected {_shapes(own)}; {HOW_TO_FIX}")
    return tensors


def _file(checkpoint: str) -> Path:
    """The file of a folder or of a model on the hub that holds the box head."""
    from transformers.utils import cached_file

    from rvos_cache.trackers.referdino.upstream import HEAD_FILE

    folder = Path(resolve_checkpoint(checkpoint))
    if (folder / HEAD_FILE).is_file():
        return folder / HEAD_FILE
    try:
        return Path(str(cached_file(str(folder) if folder.is_dir() else checkpoint, GROUNDING)))
    except OSError as error:
        raise InputError(f"{checkpoint}: no {GROUNDING} ({' '.join(str(error).split()):.140}); {HOW_TO_FIX}") from error


def _box_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the last copy in a file, under the names of `Mlp`. Only these are read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = {match[0]: match for name in file.keys() if (match := BOX.fullmatch(name))}  # noqa: SIM118
            last = max((int(match[1]) for match in names.values()), default=0)
            return {match[2]: file.get_tensor(name).float() for name, match in names.items() if int(match[1]) == last}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); {HOW_TO_FIX}") from error


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items())) or "none"
