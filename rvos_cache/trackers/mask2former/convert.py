"""Mask2Former of transformers from the tensors of a released checkpoint in detectron2's format.

Sizes are read from the tensors; a missing or unknown tensor, or one of another shape, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.pretrained import quiet
from rvos_cache.tensor_names import TensorNames
from rvos_cache.trackers.mask2former import names
from rvos_cache.trackers.mask2former.released import ReleasedSizes

STAGES = ["stage1", "stage2", "stage3", "stage4"]
LEVELS, POINTS = 3, 4
"""Deformable attention of Mask2Former's pixel decoder: feature maps, and sampling points per map."""


def read_mask2former(
    tensors: Mapping[str, Tensor], kind: str, tensor_names: TensorNames = names.NAMES, backbone: Any = None
) -> Any:
    """The transformers model of the released tensors of Mask2Former.

    kind: what the checkpoint is called in errors; tensor_names, backbone: names and configuration of a backbone besides ResNet and
    Swin. Raises InputError naming a tensor that is unknown, missing, or of a shape that contradicts the others.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        targets = tensor_names.parts(name)
        if not targets:
            raise InputError(f"the tensor {name!r} is not one of Mask2Former or of the head; give a {kind}")
        if len(tensor) % len(targets):
            raise InputError(f"{name!r} is {tuple(tensor.shape)}, which cannot be split into {len(targets)} equal parts")
        converted |= dict(zip(targets, tensor.float().chunk(len(targets))))
    # Of a ResNet transformers warns that it may not be compatible.
    with quiet(), torch.random.fork_rng(devices=[]):
        config = mask2former_config(tensors, kind, backbone)
        model = Mask2FormerForUniversalSegmentation(config)
    for name, initial in model.state_dict().items():
        official = tensor_names.released(name)
        if name not in converted and official is not None:
            raise InputError(f"the tensor {official!r} is missing; give a complete {kind}")
        if name in converted and converted[name].shape != initial.shape:
            shape = tuple(converted[name].shape)
            raise InputError(f"{official!r} gives {name} {shape}, expected {tuple(initial.shape)} from the other tensors")
    unknown = sorted(converted.keys() - model.state_dict().keys())
    if unknown:
        raise InputError(
            f"the tensor {tensor_names.released(unknown[0])!r} does not belong to a {config.backbone_config.model_type} model"
        )
    model.load_state_dict({**model.state_dict(), **converted})
    return model.eval()


def mask2former_config(tensors: Mapping[str, Tensor], kind: str, backbone: Any = None) -> Any:
    """The configuration of transformers, from the shapes of the released tensors of Mask2Former.

    kind: what the checkpoint is called in errors; backbone: its configuration, if it is neither a ResNet nor a Swin. Raises InputError
    naming a tensor that is missing or has another number of axes.
    """
    from transformers import Mask2FormerConfig

    sizes = ReleasedSizes(tensors, kind)
    pixel, predictor = names.PIXEL, names.PREDICTOR
    mask_size, feature_size = sizes.of(f"{pixel}.mask_features.weight", 4)[:2]
    queries, hidden = sizes.of(f"{predictor}.query_feat.weight", 2)
    # Each attention head has an x and a y offset for each point of each map.
    offsets = sizes.of(f"{pixel}.transformer.encoder.layers.0.self_attn.sampling_offsets.bias", 1)[0]
    if backbone is None:
        backbone = _resnet_config(sizes) if sizes.count("backbone.stem.") else _swin_config(sizes)
    return Mask2FormerConfig(
        backbone_config=backbone,
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
        enforce_input_projection=f"{predictor}.input_proj.0.weight" in tensors,
    )


def _swin_config(sizes: ReleasedSizes) -> Any:
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


def _resnet_config(sizes: ReleasedSizes) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=sizes.of("backbone.stem.conv1.weight", 4)[0],
        hidden_sizes=[sizes.of(f"backbone.res{stage}.0.conv3.weight", 4)[0] for stage in range(2, 6)],
        depths=[sizes.count(f"backbone.res{stage}.") for stage in range(2, 6)],
        layer_type="bottleneck",
        out_features=STAGES,
    )
