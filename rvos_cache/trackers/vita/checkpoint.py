"""Load the two parts of a VITA checkpoint folder: Mask2Former of transformers, and the head."""

from __future__ import annotations

from rvos_cache.errors import InputError
from rvos_cache.pretrained import weights_digest
from rvos_cache.system.device import device
from rvos_cache.trackers.mask2former.segmenter import Segmenter, read_head
from rvos_cache.trackers.vita.head import KIND, VitaHead

HEAD_FILE = "vita_head.safetensors"
"""File in the checkpoint folder with the head's tensors under their released names."""


def load_head(checkpoint: str) -> VitaHead:
    """The frozen head of a converted checkpoint, by folder or hub name, on the GPU where there is one.

    Raises InputError if it does not exist or cannot be read.
    """
    return VitaHead.from_official(read_head(checkpoint, HEAD_FILE, KIND, "convert-vita")).to(device())


def load_vita(checkpoint: str) -> tuple[Segmenter, VitaHead]:
    """Both parts of a converted checkpoint.

    Raises InputError if one cannot be loaded, or if they are not of the same checkpoint.
    """
    segmenter, head = Segmenter(checkpoint, KIND), load_head(checkpoint)
    config, sizes = segmenter.model.config, head.sizes
    parts = {
        "frame queries": (config.num_queries, sizes.frame_queries),
        "channels of a query": (config.hidden_dim, sizes.channels),
        "channels of the map": (config.feature_size, sizes.map_channels),
    }
    for name, (in_model, in_head) in parts.items():
        if in_model != in_head:
            raise InputError(
                f"{KIND} {checkpoint!r}: Mask2Former has {in_model} {name}, {HEAD_FILE} {in_head}; convert one checkpoint"
            )
    return segmenter, head


def head_hash(head: VitaHead) -> dict[str, str]:
    """`HEAD_FILE` -> digest of the head's weights, by which a selector checks that it loads the head of a cache."""
    return weights_digest(head, HEAD_FILE)
