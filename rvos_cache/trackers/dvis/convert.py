"""Convert a released DVIS++ checkpoint (detectron2's format) to a folder that `from_pretrained` and `load_dvis` read.

Sizes are read from the tensors. Every tensor is converted or listed; a missing or unknown tensor, or one of another shape, is an
error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.system.files import new_folder, write_json
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.dvis import adapter, refiner
from rvos_cache.trackers.dvis import head as head_names
from rvos_cache.trackers.dvis.checkpoint import HEAD_FILE
from rvos_cache.trackers.dvis.head import DvisHead
from rvos_cache.trackers.dvis.queries import KIND, PREFIX
from rvos_cache.trackers.mask2former import names
from rvos_cache.trackers.mask2former.convert import read_mask2former


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    backbone: model type of the backbone; queries: per frame; channels: of a track's token; classes: without the void class; tensors:
    number of converted tensors; unread: names of the tensors that the offline model does not use, which were left out.
    """

    backbone: str
    queries: int
    channels: int
    classes: int
    tensors: int
    unread: tuple[str, ...]


def convert_dvis(checkpoint: Path, out: Path) -> Conversion:
    """Convert a checkpoint file to the folder `out`; only tensors are read from the file, no code is run.

    Raises InputError if `out` exists, or if the file is not a complete checkpoint of the offline model with a known backbone.
    """
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    if out.exists():
        raise InputError(f"{out}: already exists; choose another folder or remove it")
    tensors = read_tensors(checkpoint, f"give a {KIND} (.pth), or save its model's state_dict", nested="model")
    unread = tuple(sorted(name for name in tensors if is_unread(name)))
    read = {name: tensor for name, tensor in tensors.items() if name not in unread}
    _check_is_offline(checkpoint, tensors)
    try:
        head = DvisHead.from_official(read)
        # The last LayerNorm of Mask2Former's decoder belongs to both.
        model = _segmenter({n: t for n, t in read.items() if names.NAMES.parts(n) or not head_names.is_head(n)})
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    conversion = Conversion(
        backbone=model.config.backbone_config.model_type,
        queries=model.config.num_queries,
        channels=head.refiner.channels,
        classes=head.refiner.classes,
        tensors=len(read),
        unread=unread,
    )
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in head.official().items()}, folder / HEAD_FILE, {"format": "pt"})
        write_json(folder / "conversion.json", {"source": checkpoint.name, "tensors": conversion.tensors, "unread": unread})
    return conversion


def _check_is_offline(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises InputError where all tensors of the parts that only DVIS++ has, or only its offline model, are missing."""
    has_reid = any(name.startswith(f"{PREFIX}reid_embed.") for name in tensors)
    has_refiner = any(name.startswith(refiner.PREFIX) for name in tensors)
    if not has_reid and not has_refiner:
        raise InputError(f"{checkpoint}: is of another model, with no tensor of DVIS++'s own parts; give a {KIND} (.pth)")
    if not has_refiner:
        raise InputError(
            f"{checkpoint}: is an online or image-level model of DVIS++, without the temporal refiner; give one of the offline models"
        )


def is_unread(official: str) -> bool:
    """Whether the offline model does not use the released tensor."""
    in_adapter = official.startswith(adapter.PREFIX) and re.fullmatch(adapter.UNREAD, official.removeprefix(adapter.PREFIX))
    return bool(in_adapter) or names.is_unread(official) or head_names.is_unread(official)


def _segmenter(tensors: Mapping[str, Tensor]) -> Any:
    """Mask2Former of its released tensors."""
    if not any(name.startswith(f"{adapter.PREFIX}vit_module.") for name in tensors):
        return read_mask2former(tensors, KIND)
    from rvos_cache.trackers.dvis import backbone

    backbone.register()
    return read_mask2former(tensors, KIND, backbone.NAMES, backbone.adapter_config(tensors))
