"""Names of Mask2Former's tensors in detectron2's checkpoints and in transformers: one table for both directions.

Keys: names in the public code of Mask2Former and detectron2; values: names in transformers' module tree, without "model.". {i}
and {j} are numbers, {p} is weight or bias, {s} is weight, bias, running_mean or running_var. If a value has several names, the
tensor of the key is their concatenation along the first axis.
"""

from __future__ import annotations

import re

from rvos_cache.tensor_names import TensorNames

UNREAD = (
    r"criterion\.empty_weight",  # weights of the losses
    r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",  # determined by the size of the window
    r"backbone\..*\.num_batches_tracked",  # numbers of training steps
)
"""Patterns of the released tensors that evaluation does not use."""
FIELDS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias", "s": "weight|bias|running_mean|running_var"}
ENCODER, DECODER = "pixel_level_module.encoder", "transformer_module.decoder"
PIXEL, PREDICTOR = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"


def swin() -> dict[str, tuple[str, ...]]:
    """The Swin backbone."""
    block, target = "backbone.layers.{i}.blocks.{j}", f"{ENCODER}.swin.encoder.layers.{{i}}.blocks.{{j}}"
    table: dict[str, tuple[str, ...]] = {
        "backbone.patch_embed.proj.{p}": (f"{ENCODER}.swin.embeddings.patch_embeddings.projection.{{p}}",),
        "backbone.patch_embed.norm.{p}": (f"{ENCODER}.swin.embeddings.norm.{{p}}",),
        f"{block}.norm1.{{p}}": (f"{target}.layernorm_before.{{p}}",),
        f"{block}.norm2.{{p}}": (f"{target}.layernorm_after.{{p}}",),
        f"{block}.attn.relative_position_bias_table": (
            f"{target}.attention.relative_position_bias.relative_position_bias_table",
        ),
        f"{block}.attn.qkv.{{p}}": tuple(f"{target}.attention.{x}_proj.{{p}}" for x in "qkv"),
        f"{block}.attn.proj.{{p}}": (f"{target}.attention.o_proj.{{p}}",),
        f"{block}.mlp.fc1.{{p}}": (f"{target}.mlp.fc1.{{p}}",),
        f"{block}.mlp.fc2.{{p}}": (f"{target}.mlp.fc2.{{p}}",),
        "backbone.layers.{i}.downsample.norm.{p}": (f"{ENCODER}.swin.encoder.layers.{{i}}.downsample.norm.{{p}}",),
        "backbone.layers.{i}.downsample.reduction.weight": (f"{ENCODER}.swin.encoder.layers.{{i}}.downsample.reduction.weight",),
    }
    for stage in range(4):
        table[f"backbone.norm{stage}.{{p}}"] = (f"{ENCODER}.hidden_states_norms.stage{stage + 1}.{{p}}",)
    return table


def resnet() -> dict[str, tuple[str, ...]]:
    """The ResNet backbone with frozen batch norms."""
    table: dict[str, tuple[str, ...]] = {}

    def convolution(source: str, target: str) -> None:
        table[f"{source}.weight"] = (f"{target}.convolution.weight",)
        table[f"{source}.norm.{{s}}"] = (f"{target}.normalization.{{s}}",)

    convolution("backbone.stem.conv1", f"{ENCODER}.embedder.embedder")
    for stage in range(4):
        layer, target = f"backbone.res{stage + 2}.{{i}}", f"{ENCODER}.encoder.stages.{stage}.layers.{{i}}"
        convolution(f"{layer}.shortcut", f"{target}.shortcut")
        for step in range(3):
            convolution(f"{layer}.conv{step + 1}", f"{target}.layer.{step}")
    return table


def heads() -> dict[str, tuple[str, ...]]:
    """The pixel decoder, the transformer decoder and the class head."""
    pixel, layer = "pixel_level_module.decoder", f"{PIXEL}.transformer.encoder.layers.{{i}}"
    table: dict[str, tuple[str, ...]] = {
        f"{PIXEL}.input_proj.{{i}}.{{j}}.{{p}}": (f"{pixel}.input_projections.{{i}}.{{j}}.{{p}}",),
        f"{PIXEL}.transformer.level_embed": (f"{pixel}.level_embed",),
        f"{layer}.norm1.{{p}}": (f"{pixel}.encoder.layers.{{i}}.self_attn_layer_norm.{{p}}",),
        f"{layer}.linear1.{{p}}": (f"{pixel}.encoder.layers.{{i}}.fc1.{{p}}",),
        f"{layer}.linear2.{{p}}": (f"{pixel}.encoder.layers.{{i}}.fc2.{{p}}",),
        f"{layer}.norm2.{{p}}": (f"{pixel}.encoder.layers.{{i}}.final_layer_norm.{{p}}",),
        f"{PIXEL}.mask_features.{{p}}": (f"{pixel}.mask_projection.{{p}}",),
        f"{PREDICTOR}.query_feat.weight": ("transformer_module.queries_features.weight",),
        f"{PREDICTOR}.query_embed.weight": ("transformer_module.queries_embedder.weight",),
        f"{PREDICTOR}.level_embed.weight": ("transformer_module.level_embed.weight",),
        f"{PREDICTOR}.input_proj.{{i}}.{{p}}": ("transformer_module.input_projections.{i}.{p}",),
        f"{PREDICTOR}.decoder_norm.{{p}}": (f"{DECODER}.layernorm.{{p}}",),
        f"{PREDICTOR}.mask_embed.layers.{{i}}.{{p}}": (f"{DECODER}.mask_predictor.mask_embedder.{{i}}.0.{{p}}",),
        f"{PREDICTOR}.class_embed.{{p}}": ("class_predictor.{p}",),
    }
    for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        table[f"{layer}.self_attn.{part}.{{p}}"] = (f"{pixel}.encoder.layers.{{i}}.self_attn.{part}.{{p}}",)
    for part in ("adapter_1", "layer_1"):
        table[f"{PIXEL}.{part}.weight"] = (f"{pixel}.{part}.0.weight",)
        table[f"{PIXEL}.{part}.norm.{{p}}"] = (f"{pixel}.{part}.1.{{p}}",)
    return table | decoder_layers()


def decoder_layers() -> dict[str, tuple[str, ...]]:
    """The layers of the transformer decoder; transformers splits the packed projection of self-attention only."""
    layer = f"{DECODER}.layers.{{i}}"
    attention, cross, feed = (f"{PREDICTOR}.transformer_{x}_layers.{{i}}" for x in ("self_attention", "cross_attention", "ffn"))
    table: dict[str, tuple[str, ...]] = {
        f"{attention}.self_attn.out_proj.{{p}}": (f"{layer}.self_attn.out_proj.{{p}}",),
        f"{attention}.norm.{{p}}": (f"{layer}.self_attn_layer_norm.{{p}}",),
        f"{cross}.multihead_attn.out_proj.{{p}}": (f"{layer}.cross_attn.out_proj.{{p}}",),
        f"{cross}.norm.{{p}}": (f"{layer}.cross_attn_layer_norm.{{p}}",),
        f"{feed}.linear1.{{p}}": (f"{layer}.fc1.{{p}}",),
        f"{feed}.linear2.{{p}}": (f"{layer}.fc2.{{p}}",),
        f"{feed}.norm.{{p}}": (f"{layer}.final_layer_norm.{{p}}",),
    }
    for kind in ("weight", "bias"):
        table[f"{attention}.self_attn.in_proj_{kind}"] = tuple(f"{layer}.self_attn.{x}_proj.{kind}" for x in "qkv")
        table[f"{cross}.multihead_attn.in_proj_{kind}"] = (f"{layer}.cross_attn.in_proj_{kind}",)
    return table


def _full(name: str) -> str:
    return name if name.startswith("class_predictor.") else f"model.{name}"


TABLE = {source: tuple(map(_full, targets)) for source, targets in {**swin(), **resnet(), **heads()}.items()}
NAMES = TensorNames(TABLE, FIELDS)


def is_unread(official: str) -> bool:
    """Whether evaluation does not use the released tensor."""
    return any(re.fullmatch(pattern, official) for pattern in UNREAD)
