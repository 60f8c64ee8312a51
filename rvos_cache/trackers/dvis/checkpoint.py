"""Load the two parts of a DVIS++ checkpoint folder: Mask2Former of transformers, and the head."""

from __future__ import annotations

import torch

from rvos_cache.errors import InputError
from rvos_cache.pretrained import weights_digest
from rvos_cache.system.device import device
from rvos_cache.trackers.dvis.head import DvisHead
from rvos_cache.trackers.dvis.queries import KIND
from rvos_cache.trackers.mask2former.segmenter import Segmenter, read_head

HEAD_FILE = "dvis_head.safetensors"
"""File in the checkpoint folder with the tensors of re-identification, tracker and refiner under their released names."""


def load_segmenter(checkpoint: str, kind: str) -> Segmenter:
    """Mask2Former alone, also with ViT-Adapter. kind: what the checkpoint is called in errors. Raises InputError."""
    from rvos_cache.trackers.dvis.backbone import register

    register()
    return Segmenter(checkpoint, kind)


def load_dvis(checkpoint: str) -> tuple[Segmenter, DvisHead]:
    """Both parts of a converted checkpoint, on the GPU where there is one.

    Raises InputError if one cannot be loaded, or if they are not of the same checkpoint.
    """
    segmenter = load_segmenter(checkpoint, KIND)
    head = DvisHead.from_official(read_head(checkpoint, HEAD_FILE, KIND, "convert-dvis")).to(device())
    config, norm = segmenter.model.config, segmenter.model.model.transformer_module.decoder.layernorm
    parts = {
        "channels of a query": (config.hidden_dim, len(head.reid.decoder_norm.weight)),
        "channels of the mask features": (config.mask_feature_size, head.refiner.mask_channels),
    }
    for name, (in_model, in_head) in parts.items():
        if in_model != in_head:
            raise InputError(
                f"{KIND} {checkpoint!r}: Mask2Former has {in_model} {name}, {HEAD_FILE} {in_head}; convert one checkpoint"
            )
    # Both parts have the last LayerNorm of Mask2Former's decoder.
    if not torch.equal(norm.weight, head.reid.decoder_norm.weight) or not torch.equal(norm.bias, head.reid.decoder_norm.bias):
        raise InputError(
            f"{KIND} {checkpoint!r}: Mask2Former and {HEAD_FILE} have different decoder_norm weights; convert one checkpoint"
        )
    return segmenter, head


def head_hash(head: DvisHead) -> dict[str, str]:
    """`HEAD_FILE` -> digest of the head's weights."""
    return weights_digest(head, HEAD_FILE)
