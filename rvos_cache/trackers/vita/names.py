"""Names of Mask2Former's tensors in detectron2's checkpoints and in transformers: one table, read both ways.

Left: as in the public code of Mask2Former and detectron2; right: as in transformers' module tree, without "model.". {i} and {j}
are numbers, {p} is weight or bias, {s} is weight, bias, running_mean or running_var. Where the right side has several names,
the tensor on the left holds theirs one after the other along its first axis.
"""

from __future__ import annotations

import re
from functools import lru_cache

UNREAD = (
    r"(vita_)?criterion\.empty_weight",  # weights of the losses
    r"vita_module\.sim_embed_(frame|clip)\.(weight|bias)",  # the similarity loss
    r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",  # follows from the window's size
    r"backbone\..*\.num_batches_tracked",  # counts of training steps
)
"""Released tensors that evaluation does not read."""
FIELDS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias", "s": "weight|bias|running_mean|running_var"}
ENCODER, DECODER = "pixel_level_module.encoder", "transformer_module.decoder"
PIXEL, PREDICTOR = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"


def swin() -> dict[str, tuple[str, ...]]:
    """The Swin backbone."""
    block, theirs = "backbone.layers.{i}.blocks.{j}", f"{ENCODER}.swin.encoder.layers.{{i}}.blocks.{{j}}"
    table: dict[str, tuple[str, ...]] = {
        "backbone.patch_embed.proj.{p}": (f"{ENCODER}.swin.embeddings.patch_embeddings.projection.{{p}}",),
        "backbone.patch_embed.norm.{p}": (f"{ENCODER}.swin.embeddings.norm.{{p}}",),
        f"{block}.norm1.{{p}}": (f"{theirs}.layernorm_before.{{p}}",),
        f"{block}.norm2.{{p}}": (f"{theirs}.layernorm_after.{{p}}",),
        f"{block}.attn.relative_position_bias_table": (
            f"{theirs}.attention.relative_position_bias.relative_position_bias_table",
        ),
        f"{block}.attn.qkv.{{p}}": tuple(f"{theirs}.attention.{x}_proj.{{p}}" for x in "qkv"),
        f"{block}.attn.proj.{{p}}": (f"{theirs}.attention.o_proj.{{p}}",),
        f"{block}.mlp.fc1.{{p}}": (f"{theirs}.mlp.fc1.{{p}}",),
        f"{block}.mlp.fc2.{{p}}": (f"{theirs}.mlp.fc2.{{p}}",),
        "backbone.layers.{i}.downsample.norm.{p}": (f"{ENCODER}.swin.encoder.layers.{{i}}.downsample.norm.{{p}}",),
        "backbone.layers.{i}.downsample.reduction.weight": (f"{ENCODER}.swin.encoder.layers.{{i}}.downsample.reduction.weight",),
    }
    for stage in range(4):
        table[f"backbone.norm{stage}.{{p}}"] = (f"{ENCODER}.hidden_states_norms.stage{stage + 1}.{{p}}",)
    return table


def resnet() -> dict[str, tuple[str, ...]]:
    """The ResNet backbone, its batch norms frozen."""
    table: dict[str, tuple[str, ...]] = {}

    def convolution(ours: str, theirs: str) -> None:
        table[f"{ours}.weight"] = (f"{theirs}.convolution.weight",)
        table[f"{ours}.norm.{{s}}"] = (f"{theirs}.normalization.{{s}}",)

    convolution("backbone.stem.conv1", f"{ENCODER}.embedder.embedder")
    for stage in range(4):
        layer, theirs = f"backbone.res{stage + 2}.{{i}}", f"{ENCODER}.encoder.stages.{stage}.layers.{{i}}"
        convolution(f"{layer}.shortcut", f"{theirs}.shortcut")
        for step in range(3):
            convolution(f"{layer}.conv{step + 1}", f"{theirs}.layer.{step}")
    return table


def heads() -> dict[str, tuple[str, ...]]:
    """The pixel decoder, the transformer decoder and the class head."""
    pixel, ours = "pixel_level_module.decoder", f"{PIXEL}.transformer.encoder.layers.{{i}}"
    table: dict[str, tuple[str, ...]] = {
        f"{PIXEL}.input_proj.{{i}}.{{j}}.{{p}}": (f"{pixel}.input_projections.{{i}}.{{j}}.{{p}}",),
        f"{PIXEL}.transformer.level_embed": (f"{pixel}.level_embed",),
        f"{ours}.norm1.{{p}}": (f"{pixel}.encoder.layers.{{i}}.self_attn_layer_norm.{{p}}",),
        f"{ours}.linear1.{{p}}": (f"{pixel}.encoder.layers.{{i}}.fc1.{{p}}",),
        f"{ours}.linear2.{{p}}": (f"{pixel}.encoder.layers.{{i}}.fc2.{{p}}",),
        f"{ours}.norm2.{{p}}": (f"{pixel}.encoder.layers.{{i}}.final_layer_norm.{{p}}",),
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
        table[f"{ours}.self_attn.{part}.{{p}}"] = (f"{pixel}.encoder.layers.{{i}}.self_attn.{part}.{{p}}",)
    for part in ("adapter_1", "layer_1"):
        table[f"{PIXEL}.{part}.weight"] = (f"{pixel}.{part}.0.weight",)
        table[f"{PIXEL}.{part}.norm.{{p}}"] = (f"{pixel}.{part}.1.{{p}}",)
    return table | decoder_layers()


def decoder_layers() -> dict[str, tuple[str, ...]]:
    """The layers of the transformer decoder; transformers splits the packed projection of self-attention alone."""
    layer = f"{DECODER}.layers.{{i}}"
    own, cross, feed = (f"{PREDICTOR}.transformer_{x}_layers.{{i}}" for x in ("self_attention", "cross_attention", "ffn"))
    table: dict[str, tuple[str, ...]] = {
        f"{own}.self_attn.out_proj.{{p}}": (f"{layer}.self_attn.out_proj.{{p}}",),
        f"{own}.norm.{{p}}": (f"{layer}.self_attn_layer_norm.{{p}}",),
        f"{cross}.multihead_attn.out_proj.{{p}}": (f"{layer}.cross_attn.out_proj.{{p}}",),
        f"{cross}.norm.{{p}}": (f"{layer}.cross_attn_layer_norm.{{p}}",),
        f"{feed}.linear1.{{p}}": (f"{layer}.fc1.{{p}}",),
        f"{feed}.linear2.{{p}}": (f"{layer}.fc2.{{p}}",),
        f"{feed}.norm.{{p}}": (f"{layer}.final_layer_norm.{{p}}",),
    }
    for kind in ("weight", "bias"):
        table[f"{own}.self_attn.in_proj_{kind}"] = tuple(f"{layer}.self_attn.{x}_proj.{kind}" for x in "qkv")
        table[f"{cross}.multihead_attn.in_proj_{kind}"] = (f"{layer}.cross_attn.in_proj_{kind}",)
    return table


TABLE = {**swin(), **resnet(), **heads()}


def in_transformers(official: str) -> tuple[str, ...]:
    """The transformers names of a released tensor; () for one that is not Mask2Former's."""
    for pattern, (source, targets) in _patterns(False):
        found = pattern.fullmatch(official)
        if found and source:
            return tuple(_full(target.format(**found.groupdict())) for target in targets)
    return ()


def in_detectron2(name: str) -> str | None:
    """The released name of the tensor that holds a tensor of transformers; None for one that no checkpoint holds."""
    for pattern, (source, _) in _patterns(True):
        found = pattern.fullmatch(name)
        if found:
            return source.format(**found.groupdict())
    return None


def is_unread(official: str) -> bool:
    """Whether evaluation does not read the released tensor."""
    return any(re.fullmatch(pattern, official) for pattern in UNREAD)


def _full(name: str) -> str:
    return name if name.startswith("class_predictor.") else f"model.{name}"


@lru_cache
def _patterns(reverse: bool) -> list[tuple[re.Pattern[str], tuple[str, tuple[str, ...]]]]:
    out = []
    for source, targets in TABLE.items():
        for template in [_full(t) for t in targets] if reverse else [source]:
            out.append((re.compile(_expression(template)), (source, targets)))
    return out


def _expression(template: str) -> str:
    """A regular expression with a named group for each field of `template`."""
    pattern = re.escape(template)
    for field, values in FIELDS.items():
        pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{values})")
    return pattern
