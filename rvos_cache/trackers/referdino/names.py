"""Names of the tensors in a released ReferDINO checkpoint and in transformers' GroundingDINO (5.23).

Keys of the table: released names; values: names in transformers. {i} and {j} are numbers, {p} is weight or bias. If a value has
several names, the tensor of the key is their concatenation along the first axis. A file contains copies of shared modules:
`bbox_embed` and `temporal_decoder` once for each decoder layer, the decoder's `bbox_embed` and `ref_point_head` again at the top.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.tensor_names import TensorNames
from rvos_cache.trackers.mask2former.names import ENCODER
from rvos_cache.trackers.mask2former.names import swin as swin_of_detectron2

GROUPS = (
    "transformer", "bert", "feat_map", "input_proj", "backbone", "bbox_embed", "ref_point_head", "pixel_decoder", "mask_decoder",
    "temporal_decoder",
)  # fmt: skip
"""First parts of the released names."""
DROPPED = (
    r"bert\.pooler\..*",  # GroundingDINO does not read it
    r"backbone\.0\..*\.relative_position_index",  # determined by the size of the window
    r"(pixel_decoder|mask_decoder|temporal_decoder)\..*",  # ReferDINO's head
    r"ref_point_head\..*",  # the decoder's again
)
"""Patterns of the released tensors that transformers' GroundingDINO lacks."""
RANK = 32
"""Rank of LoRA. With loralib's default `lora_alpha` of 1 the product is scaled by 1 / RANK."""
LORA = (".lora_A", ".lora_B")
FIELDS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias", "rest": ".+"}
BACKBONE = "model.backbone.conv_encoder.model"
SAMPLING = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
"""Projections of deformable attention, the same in both."""


def swin() -> dict[str, tuple[str, ...]]:
    """The Swin backbone; `norm0`, which GroundingDINO lacks, is the norm of transformers' first stage."""
    table = {}
    for source, targets in swin_of_detectron2().items():
        name = "backbone.0." + source.removeprefix("backbone.")
        table[name] = tuple(BACKBONE + target.removeprefix(ENCODER) for target in targets)
    return table


def attention(source: str, target: str) -> dict[str, tuple[str, ...]]:
    """Multi-head attention: one packed projection in the release, three in transformers."""
    return {
        f"{source}.in_proj_{{p}}": tuple(f"{target}.{part}.{{p}}" for part in ("query", "key", "value")),
        f"{source}.out_proj.{{p}}": (f"{target}.out_proj.{{p}}",),
    }


def encoder() -> dict[str, tuple[str, ...]]:
    """The six encoder layers, each with a deformable, a text and a fusion part."""
    source, target = "transformer.encoder", "model.encoder.layers.{i}"
    vision, text, fusion = f"{source}.layers.{{i}}", f"{source}.text_layers.{{i}}", f"{source}.fusion_layers.{{i}}"
    deformable, enhancer, fused = f"{target}.deformable_layer", f"{target}.text_enhancer_layer", f"{target}.fusion_layer"
    table: dict[str, tuple[str, ...]] = {
        f"{vision}.norm1.{{p}}": (f"{deformable}.self_attn_layer_norm.{{p}}",),
        f"{vision}.norm2.{{p}}": (f"{deformable}.final_layer_norm.{{p}}",),
        f"{text}.norm1.{{p}}": (f"{enhancer}.layer_norm_before.{{p}}",),
        f"{text}.norm2.{{p}}": (f"{enhancer}.layer_norm_after.{{p}}",),
        f"{fusion}.gamma_v": (f"{fused}.vision_param",),
        f"{fusion}.gamma_l": (f"{fused}.text_param",),
        f"{fusion}.layer_norm_v.{{p}}": (f"{fused}.layer_norm_vision.{{p}}",),
        f"{fusion}.layer_norm_l.{{p}}": (f"{fused}.layer_norm_text.{{p}}",),
    }
    for part in SAMPLING:
        table[f"{vision}.self_attn.{part}.{{p}}"] = (f"{deformable}.self_attn.{part}.{{p}}",)
    for number in (1, 2):
        table[f"{vision}.linear{number}.{{p}}"] = (f"{deformable}.fc{number}.{{p}}",)
        table[f"{text}.linear{number}.{{p}}"] = (f"{enhancer}.fc{number}.{{p}}",)
    for short, long in (("v", "vision"), ("l", "text")):
        for kind in ("", "values_", "out_"):
            table[f"{fusion}.attn.{kind}{short}_proj.{{p}}"] = (f"{fused}.attn.{kind}{long}_proj.{{p}}",)
    return table | attention(f"{text}.self_attn", f"{enhancer}.self_attn")


def decoder() -> dict[str, tuple[str, ...]]:
    """The decoder with its box heads."""
    layer, target = "transformer.decoder.layers.{i}", "model.decoder.layers.{i}"
    table: dict[str, tuple[str, ...]] = {
        # norm1 follows the attention to the image although it is applied after norm2.
        f"{layer}.norm1.{{p}}": (f"{target}.encoder_attn_layer_norm.{{p}}",),
        f"{layer}.norm2.{{p}}": (f"{target}.self_attn_layer_norm.{{p}}",),
        f"{layer}.norm3.{{p}}": (f"{target}.final_layer_norm.{{p}}",),
        f"{layer}.catext_norm.{{p}}": (f"{target}.encoder_attn_text_layer_norm.{{p}}",),
        f"{layer}.linear1.{{p}}": (f"{target}.fc1.{{p}}",),
        f"{layer}.linear2.{{p}}": (f"{target}.fc2.{{p}}",),
        "transformer.decoder.norm.{p}": ("model.decoder.layer_norm.{p}",),
        "transformer.decoder.ref_point_head.layers.{i}.{p}": ("model.decoder.reference_points_head.layers.{i}.{p}",),
        "transformer.decoder.bbox_embed.{i}.layers.{j}.{p}": ("model.decoder.bbox_embed.{i}.layers.{j}.{p}",),
        "bbox_embed.{i}.layers.{j}.{p}": ("bbox_embed.{i}.layers.{j}.{p}",),
    }
    for part in SAMPLING:
        table[f"{layer}.cross_attn.{part}.{{p}}"] = (f"{target}.encoder_attn.{part}.{{p}}",)
    table |= attention(f"{layer}.self_attn", f"{target}.self_attn")
    return table | attention(f"{layer}.ca_text", f"{target}.encoder_attn_text")


def rest() -> dict[str, tuple[str, ...]]:
    """BERT, the projections, and the choice of the first queries."""
    return {
        "bert.{rest}": ("model.text_backbone.{rest}",),
        "feat_map.{p}": ("model.text_projection.{p}",),
        "input_proj.{i}.{j}.{p}": ("model.input_proj_vision.{i}.{j}.{p}",),
        "transformer.level_embed": ("model.level_embed",),
        "transformer.tgt_embed.weight": ("model.query_position_embeddings.weight",),
        "transformer.enc_output.{p}": ("model.enc_output.{p}",),
        "transformer.enc_output_norm.{p}": ("model.enc_output_norm.{p}",),
        "transformer.enc_out_bbox_embed.layers.{i}.{p}": ("model.encoder_output_bbox_embed.layers.{i}.{p}",),
    }


TABLE = {**swin(), **encoder(), **decoder(), **rest()}
NAMES = TensorNames(TABLE, FIELDS)


def hf_state(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released tensors, any subset, under the names of transformers' `GroundingDinoForObjectDetection`, float32.

    LoRA is merged: W + BA / 32. Packed projections are split. What transformers' model lacks is left out (see DROPPED).
    `norm0` becomes `model.backbone.conv_encoder.model.hidden_states_norms.stage1`, which `FourStageGroundingDino` has.
    Raises InputError naming a tensor that is not one of ReferDINO, cannot be split, or belongs to an incomplete LoRA.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in merged(official).items():
        if is_dropped(name):
            continue
        targets = in_transformers(name)
        if not targets:
            raise InputError(f"the tensor {name!r} is not one of ReferDINO; give a checkpoint of ReferDINO")
        if len(targets) > 1 and len(tensor) % len(targets):
            raise InputError(f"{name!r} is {tuple(tensor.shape)}, which cannot be split into {len(targets)} equal parts")
        parts = tensor.chunk(len(targets)) if len(targets) > 1 else (tensor,)
        out |= {target: part.contiguous() for target, part in zip(targets, parts)}
    return out


def merged(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released tensors with the product of LoRA in the weights, W + BA / 32, and without `lora_A`, `lora_B`; float32.

    Integer buffers keep their type. Raises InputError if W, A or B of a layer is missing, or their shapes do not fit together.
    """
    out = {n: t.float() if t.is_floating_point() else t for n, t in official.items() if not n.endswith(LORA)}
    for layer in sorted({name.rpartition(".")[0] for name in official if name.endswith(LORA)}):
        parts = [official.get(f"{layer}.{part}") for part in ("weight", "lora_A", "lora_B")]
        for part, tensor in zip(("weight", "lora_A", "lora_B"), parts):
            if tensor is None:
                raise InputError(f"the tensor '{layer}.{part}' is missing; give a complete checkpoint of ReferDINO")
        weight, a, b = (tensor.float() for tensor in parts if tensor is not None)
        if a.ndim != 2 or b.ndim != 2 or len(a) != RANK or b.shape[1] != RANK or weight.shape != (len(b), a.shape[1]):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (weight, a, b))
            raise InputError(f"'{layer}': weight, lora_A and lora_B are {shapes}, expected (m, n), ({RANK}, n), (m, {RANK})")
        out[f"{layer}.weight"] = weight + b @ a / RANK
    return out


def first(name: str) -> str:
    """The name of the first copy of a released tensor; `name` itself for a tensor that has none before it."""
    name = re.sub(r"^transformer\.decoder\.(bbox_embed|ref_point_head)\.", r"\1.", name)
    return re.sub(r"^(bbox_embed|temporal_decoder)\.\d+\.", r"\1.0.", name)


def counts(names: Iterable[str]) -> dict[str, int]:
    """Number of released tensors of each of GROUPS."""
    number = Counter(name.split(".")[0] for name in names)
    return {group: number[group] for group in GROUPS}


def check_released(official: Mapping[str, Tensor]) -> None:
    """Raises InputError naming a tensor that is not one of ReferDINO, or that differs from its first copy."""
    for name, tensor in official.items():
        # lora_A and lora_B belong to a weight.
        plain = f"{name.rpartition('.')[0]}.weight" if name.endswith(LORA) else name
        if not is_dropped(plain) and not in_transformers(plain):
            raise InputError(f"the tensor {name!r} is not one of ReferDINO; give a checkpoint of ReferDINO")
        original = official.get(first(name))
        if original is not None and not torch.equal(tensor, original):
            raise InputError(
                f"{name!r} differs from {first(name)!r}, though ReferDINO uses one module for both; give an unchanged checkpoint"
            )


def check_not_merged(official: Mapping[str, Tensor], grounding: Mapping[str, Tensor]) -> None:
    """Raises InputError if a weight of `official` contains the product of LoRA already, so that `merged` would add it twice.

    official: released tensors; grounding: state of transformers' GroundingDINO that was adapted, whose weights LoRA leaves as
    they are. loralib adds the product in evaluation mode, so a state saved then, or loaded then, contains it.
    """
    for name in sorted(official):
        layer, _, part = name.rpartition(".")
        own = [grounding[target] for target in in_transformers(f"{layer}.weight") if target in grounding]
        if part != "lora_A" or not own or f"{layer}.lora_B" not in official or f"{layer}.weight" not in official:
            continue
        product = official[f"{layer}.lora_B"].float() @ official[name].float() / RANK
        change = official[f"{layer}.weight"].float() - own[0].float().cpu()
        # Also twice the product, of such a state that was loaded and saved in evaluation mode again.
        if (change - product).norm() < 0.9 * change.norm():
            raise InputError(
                f"'{layer}.weight' contains the product of LoRA already (GroundingDINO's own weight plus BA / {RANK}), because the "
                "checkpoint was saved in evaluation mode; give one that was saved in training mode"
            )


def in_transformers(official: str) -> tuple[str, ...]:
    """The names in transformers of a released tensor; () if its GroundingDINO has no such tensor."""
    return () if is_dropped(official) else NAMES.parts(official)


def in_released(name: str) -> str | None:
    """The released name of the tensor that contains a tensor of transformers; None if no checkpoint contains it."""
    return NAMES.released(name)


def is_dropped(official: str) -> bool:
    """Whether transformers' GroundingDINO lacks the released tensor."""
    return any(re.fullmatch(pattern, official) for pattern in DROPPED)
