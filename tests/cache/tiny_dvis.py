"""A tiny DVIS++ checkpoint: the random Mask2Former of tiny_vita with random re-identification, tracker and refiner."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_vita import CHANNELS, SIZES, mask2former_names, randomised
from tiny_vita import mask2former as mask2former_of
from torch import Tensor

from rvos_cache.trackers.dvis import DvisHead, ReferringTracker, ReidQueries, TemporalRefiner
from rvos_cache.trackers.dvis.adapter import AdapterSizes

WIDTH = 2 * CHANNELS
QUERIES, CLASSES = SIZES.frame_queries, SIZES.classes
SMALL = {"side": 64, "pool": 4}
ENCODER = "pixel_level_module.encoder.adapter."
HEAD_FILE = "dvis_head.safetensors"


ADAPTER = AdapterSizes(width=128, blocks=4, hidden=64, positions=9, stem=4, groups=4, extra=2, heads=4, convolved=16)
UNREAD_OF_ADAPTER = (
    "backbone.vit_module.mask_token",
    "backbone.vit_module.norm.weight",
    "backbone.vit_module.norm.bias",
    "backbone.norm1.num_batches_tracked",
)


@lru_cache
def mask2former(backbone: str = "resnet") -> Any:
    """A random Mask2Former with a ResNet, Swin or ViT-Adapter ("adapter"). Do not change it."""
    if backbone != "adapter":
        return mask2former_of(backbone)
    from rvos_cache.trackers.dvis.backbone import VitAdapterConfig, register

    register()
    return mask2former_of(VitAdapterConfig(**ADAPTER.to_json()))


def dvis_head(backbone: str = "resnet", seed: int = 22) -> DvisHead:
    """A random head for the Mask2Former of that backbone, whose last LayerNorm it has too."""
    parts = ReidQueries(CHANNELS), ReferringTracker(WIDTH, 48, 2, CLASSES), TemporalRefiner(WIDTH, 48, 2, CLASSES, CHANNELS)
    head: DvisHead = randomised(DvisHead(*parts), seed)
    for name, tensor in head.state_dict().items():
        # Otherwise attention makes the tracks equal, layer by layer.
        if name.endswith(("out_proj.weight", "linear2.weight", "bias")):
            tensor.mul_(0.1)
        if "mask_embed.layers" in name and name.endswith("weight"):
            tensor.mul_(2)
    head.reid.decoder_norm.load_state_dict(mask2former(backbone).model.transformer_module.decoder.layernorm.state_dict())
    return head


def released_names(backbone: str = "resnet") -> dict[str, Tensor]:
    """The tensors of a checkpoint under their released names, including those that the offline model does not read."""
    unread = {
        f"tracker.{name}.{p}": torch.ones(3) for name in ("mask_embed.layers.0", "mask_feature_proj") for p in ("weight", "bias")
    }
    segmenter = {name.replace(ENCODER, "backbone."): t for name, t in mask2former_names(mask2former(backbone)).items()}
    if backbone == "adapter":
        unread |= dict.fromkeys(UNREAD_OF_ADAPTER, torch.ones(3))
    return {**segmenter, **dvis_head(backbone).official(), **unread}


def write_checkpoint(folder: Path, backbone: str = "resnet") -> Path:
    """Write a converted checkpoint, as the tracker loads it, to `folder`."""
    mask2former(backbone).save_pretrained(folder)
    save_file(dvis_head(backbone).official(), folder / HEAD_FILE, {"format": "pt"})
    return folder


@lru_cache
def shared_checkpoint() -> str:
    """One checkpoint for all tests of a process that only read it."""
    folder = tempfile.TemporaryDirectory(prefix="tiny-dvis-")
    _FOLDERS.append(folder)
    return str(write_checkpoint(Path(folder.name)))


_FOLDERS: list[Any] = []
