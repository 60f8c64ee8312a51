"""Load the two parts of a DVIS++ checkpoint folder: Mask2Former of transformers, and the head."""

from __future__ import annotations

from pathlib import Path

import torch

from rvos_cache.errors import InputError
from rvos_cache.pretrained import CHECKPOINT_FOLDERS, resolve_checkpoint, weights_digest
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


def check_converted(checkpoint: str) -> None:
    """Raises InputError for a file, for a folder without the head, and for a path at which there is nothing.

    Other names may be on the hub: `load_dvis` looks them up.
    """
    folder = Path(resolve_checkpoint(checkpoint))
    start = f"{KIND} {checkpoint!r}:"
    if folder.is_file():
        raise InputError(f"{start} is a file, expected a folder; convert it first: rvos-cache convert-dvis {folder} --out FOLDER")
    if folder.is_dir() and not (folder / HEAD_FILE).is_file():
        raise InputError(
            f"{start} the folder has no {HEAD_FILE}, so rvos-cache convert-dvis has not written it; give one that it wrote (the frames "
            "of a plain Mask2Former are linked with --set generator=frames)"
        )


def load_dvis(checkpoint: str) -> tuple[Segmenter, DvisHead]:
    """Both parts of a converted checkpoint, on the GPU where there is one.

    Raises InputError if one cannot be loaded, or if they are not of the same checkpoint.
    """
    check_converted(checkpoint)
    try:
        segmenter = load_segmenter(checkpoint, KIND)
    except InputError as error:
        if Path(resolve_checkpoint(checkpoint)).is_dir():
            raise
        raise InputError(
            f"{KIND} {checkpoint!r}: there is no such folder, nor one in {CHECKPOINT_FOLDERS}, nor was it found on the hub; give a "
            "folder that rvos-cache convert-dvis wrote"
        ) from error
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
