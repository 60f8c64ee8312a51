"""Convert a released VITA checkpoint (detectron2's format) to a folder that `from_pretrained` and `load_head` read.

Sizes are read from the tensors. Every tensor is converted or listed; a missing or unknown tensor, or one of another shape, is an
error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.system.files import new_folder, write_json
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.vita import names
from rvos_cache.trackers.vita.head import PREFIX, HeadSizes, VitaHead
from rvos_cache.trackers.vita.segmenter import HEAD_FILE

STAGES = ["stage1", "stage2", "stage3", "stage4"]
LEVELS, POINTS = 3, 4
"""Deformable attention of Mask2Former's pixel decoder: feature maps, and sampling points per map."""


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
        model, unread = mask2former(tensors)
        head = VitaHead.from_official(tensors)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    conversion = Conversion(model.config.backbone_config.model_type, head.sizes, len(tensors) - len(unread), unread)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        save_file({name: tensor.contiguous() for name, tensor in head.official().items()}, folder / HEAD_FILE, {"format": "pt"})
        write_json(folder / "conversion.json", {"source": checkpoint.name, "tensors": conversion.tensors, "unread": unread})
    return conversion


def mask2former(tensors: Mapping[str, Tensor]) -> tuple[Any, tuple[str, ...]]:
    """The transformers model of released tensors, and the names of those that evaluation does not use.

    Raises InputError naming a tensor that is unknown, missing, or of a shape that contradicts the others.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    unread = tuple(sorted(name for name in tensors if names.is_unread(name)))
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        targets = names.in_transformers(name)
        if not targets and name not in unread and not name.startswith(PREFIX):
            raise InputError(f"the tensor {name!r} is not one of Mask2Former or VITA; give a VITA checkpoint")
        if targets and len(tensor) % len(targets):
            raise InputError(f"{name!r} is {tuple(tensor.shape)}, which cannot be split into {len(targets)} equal parts")
        if targets:
            converted |= dict(zip(targets, tensor.float().chunk(len(targets))))
    config = mask2former_config({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with torch.random.fork_rng(devices=[]):
        model = Mask2FormerForUniversalSegmentation(config)
    for name, initial in model.state_dict().items():
        official = names.in_detectron2(name)
        if name not in converted and official is not None:
            raise InputError(f"the tensor {official!r} is missing; give a complete VITA checkpoint")
        if name in converted and converted[name].shape != initial.shape:
            shape = tuple(converted[name].shape)
            raise InputError(f"{official!r} gives {name} {shape}, expected {tuple(initial.shape)} from the other tensors")
    unknown = sorted(converted.keys() - model.state_dict().keys())
    if unknown:
        raise InputError(
            f"the tensor {names.in_detectron2(unknown[0])!r} does not belong to a {config.backbone_config.model_type} model"
        )
    model.load_state_dict({**model.state_dict(), **converted})
    return model.eval(), unread


def mask2former_config(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The configuration of transformers, from the shapes of the released tensors.

    Raises InputError naming a tensor that is missing or has another number of axes.
    """
    from transformers import Mask2FormerConfig

    sizes = _Shapes(shapes)
    pixel, predictor = names.PIXEL, names.PREDICTOR
    mask_size, feature_size = sizes.of(f"{pixel}.mask_features.weight", 4)[:2]
    queries, hidden = sizes.of(f"{predictor}.query_feat.weight", 2)
    # Each attention head has an x and a y offset for each point of each map.
    offsets = sizes.of(f"{pixel}.transformer.encoder.layers.0.self_attn.sampling_offsets.bias", 1)[0]
    return Mask2FormerConfig(
        backbone_config=_resnet_config(sizes) if sizes.count("backbone.stem.") else _swin_config(sizes),
        feature_size=feature_size,
        mask_feature_size=mask_size,
        hidden_dim=hidden,
        encoder_feedforward_dim=sizes.of(f"{pixel}.transformer.encoder.layers.0.linear1.bias", 1)[0],
        dim_feedforward=sizes.of(f"{predictor}.transformer_ffn_layers.0.linear1.bias", 1)[0],
        encoder_layers=sizes.count(f"{pixel}.transformer.encoder.layers."),
        # transformers counts the learned queries before the first layer as a layer.
        decoder_layers=sizes.count(f"{predictor}.transformer_cross_attention_layers.") + 1,
        num_attention_heads=offsets // (2 * LEVELS * POINTS),
        num_queries=queries,
        num_labels=sizes.of(f"{predictor}.class_embed.bias", 1)[0] - 1,
        enforce_input_projection=f"{predictor}.input_proj.0.weight" in shapes,
    )


def _swin_config(sizes: _Shapes) -> Any:
    from transformers import SwinConfig

    depths = [sizes.count(f"backbone.layers.{stage}.blocks.") for stage in range(4)]
    tables = [sizes.of(f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in range(4)]
    width = sizes.of("backbone.patch_embed.proj.weight", 4)[0]
    # A window of w x w cells has (2w - 1)² offsets between two of its cells.
    return SwinConfig(
        embed_dim=width,
        depths=depths,
        num_heads=[table[1] for table in tables],
        window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
        mlp_ratio=sizes.of("backbone.layers.0.blocks.0.mlp.fc1.bias", 1)[0] / width,
        out_features=STAGES,
    )


def _resnet_config(sizes: _Shapes) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=sizes.of("backbone.stem.conv1.weight", 4)[0],
        hidden_sizes=[sizes.of(f"backbone.res{stage}.0.conv3.weight", 4)[0] for stage in range(2, 6)],
        depths=[sizes.count(f"backbone.res{stage}.") for stage in range(2, 6)],
        layer_type="bottleneck",
        out_features=STAGES,
    )


class _Shapes:
    """Shapes of released tensors by name."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError if it is missing or its number of axes is not `axes`."""
        shape = self.shapes.get(name)
        if shape is None:
            raise InputError(f"the tensor {name!r} is missing; give a complete VITA checkpoint")
        if len(shape) != axes:
            raise InputError(f"{name!r} is {shape}, expected {axes} axes; give a VITA checkpoint")
        return shape

    def count(self, prefix: str) -> int:
        """How many different numbers follow `prefix` in the names."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.shapes if name.startswith(prefix)})
