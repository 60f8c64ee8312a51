"""Convert a released VITA checkpoint (detectron2's format) to a folder that `from_pretrained` and `load_head` read.

Sizes are read from the tensors. Every tensor is converted or listed; a missing or unknown tensor, or one of another shape, is an
error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.system.files import new_folder, write_json
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.mask2former.convert import read_mask2former
from rvos_cache.trackers.mask2former.names import is_unread as is_unread_in_mask2former
from rvos_cache.trackers.vita.checkpoint import HEAD_FILE
from rvos_cache.trackers.vita.head import KIND, PREFIX, HeadSizes, VitaHead

UNREAD = (
    r"vita_criterion\.empty_weight",  # weights of the losses
    r"vita_module\.sim_embed_(frame|clip)\.(weight|bias)",  # of the similarity loss
)
"""Patterns of the head's released tensors that evaluation does not use."""


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    backbone: model type of the backbone; sizes: of the head; tensors: number of converted tensors; unread: names of the tensors
    that evaluation does not use, which were left out.
    """

    backbone: str
    sizes: HeadSizes
    tensors: int
    unread: tuple[str, ...]


def convert_vita(checkpoint: Path, out: Path) -> Conversion:
    """Convert a checkpoint file to the folder `out`; only tensors are read from the file, no code is run.

    Raises InputError if `out` exists, or if the file is not a complete VITA checkpoint of a known backbone.
    """
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    if out.exists():
        raise InputError(f"{out}: already exists; choose another folder or remove it")
    tensors = read_tensors(checkpoint, "give a VITA checkpoint (.pth), or save its model's state_dict", nested="model")
    try:
        unread = tuple(sorted(name for name in tensors if is_unread(name)))
        model = read_mask2former({n: t for n, t in tensors.items() if not n.startswith(PREFIX) and n not in unread}, KIND)
        head = VitaHead.from_official(tensors)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    conversion = Conversion(model.config.backbone_config.model_type, head.sizes, len(tensors) - len(unread), unread)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in head.official().items()}, folder / HEAD_FILE, {"format": "pt"})
        write_json(folder / "conversion.json", {"source": checkpoint.name, "tensors": conversion.tensors, "unread": unread})
    return conversion


def is_unread(official: str) -> bool:
    """Whether evaluation does not use the released tensor."""
    return is_unread_in_mask2former(official) or any(re.fullmatch(pattern, official) for pattern in UNREAD)
