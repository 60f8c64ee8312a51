"""A released VITA checkpoint (detectron2's format) as a folder that `from_pretrained` and `load_head` read.

Sizes are read from the tensors. Every tensor is used or listed; one that is missing, unknown or of another shape is an error.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.files import write_json
from rvos_cache.tensors import read_tensors
from rvos_cache.trackers.vita import names
from rvos_cache.trackers.vita.head import PREFIX, HeadSizes, VitaHead
from rvos_cache.trackers.vita.segmenter import HEAD_FILE

STAGES = ["stage1", "stage2", "stage3", "stage4"]
LEVELS, POINTS = 3, 4
"""Of the deformable attention in Mask2Former's pixel decoder: maps, and points in each."""


@dataclass(frozen=True)
class Conversion:
    """What was converted. unread: the tensors that evaluation does not read, which were left out."""

    backbone: str
    sizes: HeadSizes
    tensors: int
    unread: tuple[str, ...]


def convert_vita(checkpoint: Path, out: Path) -> Conversion:
    """Write the folder `out` from a checkpoint file; only tensors are read from it, no code.

    Raises InputError when `out` is there, or the file is not a whole VITA checkpoint of a known backbone.
    """
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    if out.exists():
        raise InputError(f"{out}: is there already; choose another folder or remove it")
    held = read_tensors(checkpoint, "give a VITA checkpoint (.pth), or save its model's state_dict", nested="model")
    try:
        model, unread = mask2former(held)
        head = VitaHead.from_official(held)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    found = Conversion(model.config.backbone_config.model_type, head.sizes, len(held) - len(unread), unread)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Aside first: a folder that is there is whole.
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.save_pretrained(aside)
        save_file({name: tensor.contiguous() for name, tensor in head.official().items()}, aside / HEAD_FILE, {"format": "pt"})
        record = {"source": checkpoint.name, "tensors": found.tensors, "unread": unread}
        write_json(aside / "conversion.json", record)
        aside.chmod(0o755)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found


def mask2former(held: Mapping[str, Tensor]) -> tuple[Any, tuple[str, ...]]:
    """The transformers model of released tensors, and the names of those that evaluation does not read.

    Raises InputError naming a tensor that is unknown, missing or of another shape than the rest say.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    unread = tuple(sorted(name for name in held if names.is_unread(name)))
    given: dict[str, Tensor] = {}
    for name, tensor in held.items():
        targets = names.in_transformers(name)
        if not targets and name not in unread and not name.startswith(PREFIX):
            raise InputError(f"the tensor {name!r} is none of Mask2Former's or VITA's; give a checkpoint of VITA")
        if targets and len(tensor) % len(targets):
            raise InputError(f"{name!r} is {tuple(tensor.shape)}, which cannot be cut into {len(targets)} equal parts")
        if targets:
            given |= dict(zip(targets, tensor.float().chunk(len(targets))))
    config = mask2former_config({name: tuple(tensor.shape) for name, tensor in held.items()})
    with torch.random.fork_rng(devices=[]):
        model = Mask2FormerForUniversalSegmentation(config)
    for name, own in model.state_dict().items():
        official = names.in_detectron2(name)
        if name not in given and official is not None:
            raise InputError(f"the tensor {official!r} is missing; give a whole checkpoint of VITA")
        if name in given and given[name].shape != own.shape:
            shape = tuple(given[name].shape)
            raise InputError(f"{official!r} gives {name} {shape}, wanted {tuple(own.shape)} as the other tensors say")
    left = sorted(given.keys() - model.state_dict().keys())
    if left:
        raise InputError(
            f"the tensor {names.in_detectron2(left[0])!r} has no place in a {config.backbone_config.model_type} model"
        )
    model.load_state_dict({**model.state_dict(), **given})
    return model.eval(), unread


def mask2former_config(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """transformers' configuration, read from the shapes of the released tensors. Raises InputError."""
    from transformers import Mask2FormerConfig

    read = _Shapes(shapes)
    pixel, predictor = names.PIXEL, names.PREDICTOR
    mask_size, feature_size = read.of(f"{pixel}.mask_features.weight", 4)[:2]
    queries, hidden = read.of(f"{predictor}.query_feat.weight", 2)
    # Each head has an offset in x and y for each point of each map.
    offsets = read.of(f"{pixel}.transformer.encoder.layers.0.self_attn.sampling_offsets.bias", 1)[0]
    return Mask2FormerConfig(
        backbone_config=_resnet_config(read) if read.count("backbone.stem.") else _swin_config(read),
        feature_size=feature_size,
        mask_feature_size=mask_size,
        hidden_dim=hidden,
        encoder_feedforward_dim=read.of(f"{pixel}.transformer.encoder.layers.0.linear1.bias", 1)[0],
        dim_feedforward=read.of(f"{predictor}.transformer_ffn_layers.0.linear1.bias", 1)[0],
        encoder_layers=read.count(f"{pixel}.transformer.encoder.layers."),
        # transformers counts the learned queries before the first layer as one.
        decoder_layers=read.count(f"{predictor}.transformer_cross_attention_layers.") + 1,
        num_attention_heads=offsets // (2 * LEVELS * POINTS),
        num_queries=queries,
        num_labels=read.of(f"{predictor}.class_embed.bias", 1)[0] - 1,
        enforce_input_projection=f"{predictor}.input_proj.0.weight" in shapes,
    )


def _swin_config(read: _Shapes) -> Any:
    from transformers import SwinConfig

    depths = [read.count(f"backbone.layers.{stage}.blocks.") for stage in range(4)]
    tables = [read.of(f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in range(4)]
    width = read.of("backbone.patch_embed.proj.weight", 4)[0]
    # A window of w x w cells has (2w - 1)² offsets between two of its cells.
    return SwinConfig(
        embed_dim=width,
        depths=depths,
        num_heads=[table[1] for table in tables],
        window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
        mlp_ratio=read.of("backbone.layers.0.blocks.0.mlp.fc1.bias", 1)[0] / width,
        out_features=STAGES,
    )


def _resnet_config(read: _Shapes) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=read.of("backbone.stem.conv1.weight", 4)[0],
        hidden_sizes=[read.of(f"backbone.res{stage}.0.conv3.weight", 4)[0] for stage in range(2, 6)],
        depths=[read.count(f"backbone.res{stage}.") for stage in range(2, 6)],
        layer_type="bottleneck",
        out_features=STAGES,
    )


class _Shapes:
    """Shapes of released tensors by name."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError when it is missing or has not so many axes."""
        found = self.shapes.get(name)
        if found is None:
            raise InputError(f"the tensor {name!r} is missing; give a whole checkpoint of VITA")
        if len(found) != axes:
            raise InputError(f"{name!r} is {found}, wanted {axes} axes; give a checkpoint of VITA")
        return found

    def count(self, prefix: str) -> int:
        """How many numbers follow `prefix` in names."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.shapes if name.startswith(prefix)})
