"""Names of a ConvNeXt CLIP's tensors in open_clip and in transformers: one table for both directions.

Keys: names in open_clip's `CLIP` (its image tower is a ConvNeXt of timm); values: the part of a CLIP folder, and names in
transformers' ConvNextModel, in its CLIPTextModelWithProjection, or in the file of the image head. {i} and {j} are numbers, {p} is
weight or bias. If a value has several names, the tensor of the key is their concatenation along the first axis.
"""

from __future__ import annotations

from typing import Literal

from rvos_cache.tensor_names import TensorNames

Part = Literal["image", "text", "head"]
Table = dict[str, tuple[str, ...]]
FIELDS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias"}
TRUNK, BLOCK = "visual.trunk", "visual.trunk.stages.{i}.blocks.{j}"
LAYER, RESBLOCK = "text_model.encoder.layers.{i}", "transformer.resblocks.{i}"
IMAGE_TABLE: Table = {
    f"{TRUNK}.stem.0.{{p}}": ("embeddings.patch_embeddings.{p}",),
    f"{TRUNK}.stem.1.{{p}}": ("embeddings.layernorm.{p}",),
    f"{TRUNK}.stages.{{i}}.downsample.{{j}}.{{p}}": ("encoder.stages.{i}.downsampling_layer.{j}.{p}",),
    f"{BLOCK}.conv_dw.{{p}}": ("encoder.stages.{i}.layers.{j}.dwconv.{p}",),
    f"{BLOCK}.norm.{{p}}": ("encoder.stages.{i}.layers.{j}.layernorm.{p}",),
    f"{BLOCK}.mlp.fc1.{{p}}": ("encoder.stages.{i}.layers.{j}.pwconv1.{p}",),
    f"{BLOCK}.mlp.fc2.{{p}}": ("encoder.stages.{i}.layers.{j}.pwconv2.{p}",),
    f"{BLOCK}.gamma": ("encoder.stages.{i}.layers.{j}.layer_scale_parameter",),
}
TEXT_TABLE: Table = {
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight",),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight",),
    f"{RESBLOCK}.ln_1.{{p}}": (f"{LAYER}.layer_norm1.{{p}}",),
    f"{RESBLOCK}.attn.in_proj_weight": tuple(f"{LAYER}.self_attn.{x}_proj.weight" for x in "qkv"),
    f"{RESBLOCK}.attn.in_proj_bias": tuple(f"{LAYER}.self_attn.{x}_proj.bias" for x in "qkv"),
    f"{RESBLOCK}.attn.out_proj.{{p}}": (f"{LAYER}.self_attn.out_proj.{{p}}",),
    f"{RESBLOCK}.ln_2.{{p}}": (f"{LAYER}.layer_norm2.{{p}}",),
    f"{RESBLOCK}.mlp.c_fc.{{p}}": (f"{LAYER}.mlp.fc1.{{p}}",),
    f"{RESBLOCK}.mlp.c_proj.{{p}}": (f"{LAYER}.mlp.fc2.{{p}}",),
    "ln_final.{p}": ("text_model.final_layer_norm.{p}",),
    # transformers stores the transposed matrix.
    "text_projection": ("text_projection.weight",),
}
HEAD_TABLE: Table = {
    f"{TRUNK}.head.norm.{{p}}": ("norm.{p}",),
    "visual.head.mlp.fc1.{p}": ("fc1.{p}",),
    "visual.head.mlp.fc2.weight": ("fc2.weight",),
    "logit_scale": ("logit_scale",),
}
TABLES: dict[Part, Table] = {"image": IMAGE_TABLE, "text": TEXT_TABLE, "head": HEAD_TABLE}
HEAD_NAMES = tuple(
    name.format(p=p) for name in HEAD_TABLE for p in (("weight", "bias") if "{p}" in name else ("",))
)  # fmt: skip
"""open_clip's names of the image head and of the temperature."""


NAMES = {part: TensorNames(table, FIELDS) for part, table in TABLES.items()}


def in_transformers(name: str) -> tuple[Part, tuple[str, ...]] | None:
    """The part and the names in transformers of open_clip's tensor `name`; None if it is not one of a ConvNeXt CLIP."""
    for part, names in NAMES.items():
        targets = names.parts(name)
        if targets:
            return part, targets
    return None


def in_open_clip(part: Part, name: str) -> str | None:
    """open_clip's name of the tensor that contains the tensor `name` of a part; None if no checkpoint contains it."""
    return NAMES[part].released(name)
