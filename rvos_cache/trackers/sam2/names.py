"""Names of SAM 2's tensors in Meta's checkpoints and in transformers' Sam2VideoModel, and the four released model sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, cat

from rvos_cache.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]

NAMES: tuple[tuple[str, str], ...] = (
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    ("obj_ptr_tpos_proj.", "temporal_positional_encoding_projection_layer."),
    ("obj_ptr_proj.", "object_pointer_proj."),
    ("mask_downsample.", "mask_downsample."),
    ("image_encoder.trunk.patch_embed.proj.", "vision_encoder.backbone.patch_embed.projection."),
    ("image_encoder.trunk.", "vision_encoder.backbone."),
    ("image_encoder.neck.", "vision_encoder.neck."),
    ("sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    ("sam_prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("sam_prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("sam_prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("sam_prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("sam_prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("sam_prompt_encoder.", "prompt_encoder."),
    ("sam_mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("sam_mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("sam_mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    ("sam_mask_decoder.", "mask_decoder."),
    ("memory_encoder.pix_feat_proj.", "memory_encoder.feature_projection."),
    ("memory_encoder.out_proj.", "memory_encoder.projection."),
    ("memory_encoder.fuser.", "memory_encoder.memory_fuser."),
    ("memory_encoder.mask_downsampler.", "memory_encoder.mask_downsampler."),
    ("memory_attention.", "memory_attention."),
)
"""Beginnings of names, Meta's and transformers'; the first that matches is replaced."""

PARTS: tuple[tuple[str, str], ...] = (
    (r"\bnorm(\d)\.", r"layer_norm\1."),
    (r"\bnorm_final_attn\.", "layer_norm_final_attn."),
    (r"^memory_attention\.norm\.", "memory_attention.layer_norm."),
    (r"\bout_proj\.", "o_proj."),
    (r"(neck\.convs\.\d+)\.conv\.", r"\1."),
    (r"\bpwconv(\d)\.", r"pointwise_conv\1."),
    (r"\bdwconv\.", "depthwise_conv."),
    (r"(memory_fuser\.layers\.\d+)\.gamma$", r"\1.scale"),
    (r"(memory_fuser\.layers\.\d+)\.norm\.", r"\1.layer_norm."),
)
"""Patterns in the rest of a name, and what stands for them in transformers."""

POINT = re.compile(r"^sam_prompt_encoder\.point_embeddings\.(\d)\.weight$")
POINTS = "prompt_encoder.point_embed.weight"
POINT_KINDS = 4
"""Rows of transformers' point embedding: Meta keeps each in a tensor of its own."""
SHARED = "prompt_encoder.shared_embedding.positional_embedding"
"""transformers' second name of `shared_image_embedding.positional_embedding`."""
MASK_DOWNSAMPLER = "memory_encoder.mask_downsampler."
DOWNSAMPLER_LAYERS = 4
"""Convolutions of the mask downsampler before the last one; Meta numbers convolution, norm, activation one after the other."""
MLP = re.compile(
    r"^(.*(?:mlp|output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|object_pointer_proj))\.layers\.(\d+)\."
)


@dataclass(frozen=True)
class ModelSize:
    """One of the four released sizes, with what the shapes of tensors do not determine.

    letter: as in Meta's configurations; width: channels of the first stage; blocks: of each stage; heads: of the first stage;
    windows: sides of the attention windows; background: side of the position table; global_blocks: blocks without windows.
    """

    letter: str
    width: int
    blocks: tuple[int, int, int, int]
    heads: int
    windows: tuple[int, int, int, int]
    background: int
    global_blocks: tuple[int, int, int]


SIZES = (
    ModelSize("t", 96, (1, 2, 7, 2), 1, (8, 4, 14, 7), 7, (5, 7, 9)),
    ModelSize("s", 96, (1, 2, 11, 2), 1, (8, 4, 14, 7), 7, (7, 10, 13)),
    ModelSize("b+", 112, (2, 3, 16, 3), 2, (8, 4, 14, 7), 14, (12, 16, 20)),
    ModelSize("l", 144, (2, 6, 36, 4), 2, (8, 4, 16, 8), 7, (23, 33, 43)),
)
"""Source: sam2/configs/sam2.1/*.yaml."""


def model_size(shapes: Shapes) -> tuple[ModelSize, str]:
    """The size and version ("2", "2.1") of a checkpoint with Meta's names. Raises InputError if it is not a released size."""
    prefix = "image_encoder.trunk."
    table = shapes.get(f"{prefix}pos_embed", ())
    numbers = [int(name.removeprefix(f"{prefix}blocks.").split(".")[0]) for name in shapes if name.startswith(f"{prefix}blocks.")]
    count = max(numbers, default=-1) + 1
    for size in SIZES:
        if len(table) == 4 and (table[1], table[2], count) == (size.width, size.background, sum(size.blocks)):
            return size, "2.1" if "no_obj_embed_spatial" in shapes else "2"
    described = f"width {table[1]}, {count} blocks" if len(table) == 4 else f"no tensor {prefix}pos_embed"
    known = ", ".join(f"{size.letter}: width {size.width}, {sum(size.blocks)} blocks" for size in SIZES)
    raise InputError(f"the image encoder is none of SAM 2's ({described}; known: {known}); give a checkpoint of SAM 2 or 2.1")


def in_transformers(name: str) -> str | None:
    """The name in transformers of the tensor that Meta calls `name`, or None if SAM 2 has no such tensor.

    The four point embeddings have the same name there.
    """
    if POINT.match(name):
        return POINTS
    for meta, ours in NAMES:
        if name.startswith(meta):
            new = ours + name.removeprefix(meta)
            break
    else:
        return None
    if new.startswith(f"{MASK_DOWNSAMPLER}encoder."):
        return _downsampler(new)
    for pattern, replacement in PARTS:
        new = re.sub(pattern, replacement, new)
    return new


def _downsampler(name: str) -> str:
    number, kind = name.removeprefix(f"{MASK_DOWNSAMPLER}encoder.").split(".")
    layer, part = divmod(int(number), 3)
    if layer == DOWNSAMPLER_LAYERS:
        return f"{MASK_DOWNSAMPLER}final_conv.{kind}"
    return f"{MASK_DOWNSAMPLER}layers.{layer}.{'conv' if part == 0 else 'layer_norm'}.{kind}"


def _mlp(names: Iterable[str]) -> Callable[[str], str]:
    """A function that renames layers of MLPs: "layers.0" to "proj_in", the last to "proj_out", the others counted from 0."""
    last: dict[str, int] = {}
    for name in names:
        if match := MLP.match(name):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))

    def rename(name: str) -> str:
        match = MLP.match(name)
        if not match:
            return name
        number, end = int(match[2]), last[match[1]]
        part = "proj_in" if number == 0 else "proj_out" if number == end else f"layers.{number - 1}"
        return f"{match[1]}.{part}.{name[match.end() :]}"

    return rename


def to_transformers(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Tensors with Meta's names under transformers' names, and for each of these the names that Meta uses.

    Raises InputError if a tensor is not one of SAM 2's.
    """
    renamed: dict[str, str] = {}
    for name in tensors:
        new = in_transformers(name)
        if new is None:
            raise InputError(f"the tensor {name!r} is not one of SAM 2's; give a checkpoint of SAM 2 or 2.1")
        renamed[name] = new
    rename = _mlp(renamed.values())
    sources: dict[str, tuple[str, ...]] = {}
    for name in sorted(renamed):
        new = rename(renamed[name])
        sources[new] = (*sources.get(new, ()), name)
    out = {
        new: tensors[names[0]] if len(names) == 1 else cat([tensors[name] for name in names]) for new, names in sources.items()
    }
    return out, sources


def to_meta(tensors: Mapping[str, Tensor], meta_names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a Sam2VideoModel under Meta's names; meta_names: a state dict of Meta's model, whose names are to be filled.

    Raises InputError if a name has no tensor.
    """
    _, sources = to_transformers(meta_names)
    out: dict[str, Tensor] = {}
    for new, names in sources.items():
        tensor = tensors.get(new, tensors.get(SHARED) if new.startswith("shared_image_embedding") else None)
        if tensor is None:
            raise InputError(f"the tensor {new!r} is missing; give a folder of a Sam2VideoModel")
        parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        out.update(zip(names, parts))
    return out
