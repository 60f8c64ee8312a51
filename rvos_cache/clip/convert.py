"""Convert a ConvNeXt CLIP of open_clip, or the one inside a released SSA checkpoint, to a folder of transformers' classes.

Sizes are read from the tensors. Every tensor is used or listed; a missing or unknown tensor, or one of another shape, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvos_cache.clip.names import HEAD_NAMES, Part, in_open_clip, in_transformers
from rvos_cache.clip.towers import HEAD_FILE, IMAGE, TEXT
from rvos_cache.clip.vocabulary import DEFAULT, clip_tokenizer
from rvos_cache.errors import InputError
from rvos_cache.system.files import new_folder, write_json
from rvos_cache.tensors import read_tensors

GIVE = "give a ConvNeXt CLIP of open_clip, such as convnext_large_d_320, or a checkpoint of SSA"
NESTED = ("state_dict", "model")
"""Keys under which open_clip's training and detectron2 store the tensors."""
SSA_PREFIX = "backbone.clip_model."
"""Prefix of CLIP's tensors in a checkpoint of SSA."""
HEAD_WIDTH = 64
"""Width of an attention head of the text tower, in all models of CLIP and open_clip."""
DROP_PATH = 0.1
"""Largest rate of stochastic depth of the image tower in training. Source: open_clip's `convnext_large_d_320.json`."""


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    widths: channels of the stages of the image tower; depths: numbers of their blocks; layers: of the text tower; projection: P,
    the width of the projected vectors; tensors: number of converted tensors; unread: names of tensors that are no part of CLIP;
    has_head: whether the checkpoint has the image head and `logit_scale`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    layers: int
    projection: int
    tensors: int
    unread: tuple[str, ...]
    has_head: bool


def convert_clip(checkpoint: Path, out: Path, tokenizer: str = DEFAULT) -> Conversion:
    """Convert a checkpoint file to the CLIP folder `out`; only tensors are read from the file, no code is run.

    tokenizer: open_clip's file of merges, or a folder or hub name of a CLIP of transformers. Raises InputError if `out` exists, the
    file is not a whole ConvNeXt CLIP, or the tokenizer cannot be read or does not belong to it.
    """
    if out.exists():
        raise InputError(f"{out}: already exists; choose another folder or remove it")
    tensors = read_tensors(checkpoint, GIVE, nested=NESTED)
    try:
        used, unread, is_ssa = clip_tensors(tensors)
        parts = split_parts(used)
        image, text, head = image_tower(parts["image"]), text_tower(parts["text"]), image_head(parts["head"], used, is_ssa)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    size, positions = text.config.vocab_size, text.config.max_position_embeddings
    words = clip_tokenizer(tokenizer, size, positions)
    config = image.config
    sizes = (tuple(config.hidden_sizes), tuple(config.depths), text.config.num_hidden_layers, text.config.projection_dim)
    write_clip_folder(out, image, text, words, head, {"source": checkpoint.name, "tensors": len(used), "unread": unread})
    return Conversion(*sizes, tensors=len(used), unread=unread, has_head=bool(head))


def write_clip_folder(
    out: Path, image: Any, text: Any, tokenizer: Any, head: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Write a CLIP folder: the ConvNextModel `image`, the CLIPTextModelWithProjection `text` and its tokenizer, and the image head.

    head: see `towers.load_image_head`, empty for a CLIP without one; record: where it comes from, for `conversion.json`.
    """
    from safetensors.torch import save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    with new_folder(out) as folder:
        image.save_pretrained(folder / IMAGE)
        text.save_pretrained(folder / TEXT)
        tokenizer.save_pretrained(folder / TEXT)
        if head:
            save_file(dict(head), folder / HEAD_FILE, {"format": "pt"})
        write_json(folder / "conversion.json", {**record, "head": bool(head)})


def clip_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...], bool]:
    """The tensors of CLIP under open_clip's names, the names of the others, and whether it is a checkpoint of SSA.

    Raises InputError if two names become the same.
    """
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    is_ssa = any(name.startswith(SSA_PREFIX) for name in bare)
    # open_clip's CustomTextCLIP has the text tower in a module of its own.
    prefix = SSA_PREFIX if is_ssa else "text."
    unread = tuple(sorted(name for name in bare if is_ssa and not name.startswith(prefix)))
    used = {name.removeprefix(prefix): tensor for name, tensor in bare.items() if name not in unread}
    if len(used) + len(unread) < len(tensors):
        raise InputError(f"two tensors have the same name without the prefixes 'module.' and 'text.'; {GIVE}")
    return used, unread, is_ssa


def split_parts(tensors: Mapping[str, Tensor]) -> dict[Part, dict[str, Tensor]]:
    """The tensors of each part under transformers' names, float32.

    tensors: under open_clip's names. Raises InputError for an unknown tensor, or one that cannot be split.
    """
    parts: dict[Part, dict[str, Tensor]] = {"image": {}, "text": {}, "head": {}}
    for name, tensor in tensors.items():
        place = in_transformers(name)
        if place is None:
            raise InputError(f"the tensor {name!r} is not one of a ConvNeXt CLIP with an MLP as image head; {GIVE}")
        part, targets = place
        if len(targets) > 1 and (not tensor.ndim or len(tensor) % len(targets)):
            raise InputError(f"{name!r} is {tuple(tensor.shape)}, which cannot be split into {len(targets)} equal parts")
        pieces = tensor.float().chunk(len(targets)) if len(targets) > 1 else (tensor.float(),)
        parts[part] |= {target: piece.contiguous() for target, piece in zip(targets, pieces)}
    return parts


def image_tower(tensors: dict[str, Tensor]) -> Any:
    """The ConvNextModel of tensors under transformers' names. Raises InputError naming a tensor that is missing or of a wrong shape."""
    from transformers import ConvNextConfig, ConvNextModel

    depths: list[int] = []
    while count := _count(tensors, f"encoder.stages.{len(depths)}.layers."):
        depths.append(count)
    widths = [_shape("image", tensors, f"encoder.stages.{i}.layers.0.dwconv.weight", 4)[0] for i in range(len(depths))]
    patch = _shape("image", tensors, "embeddings.patch_embeddings.weight", 4)
    config = ConvNextConfig(
        num_channels=patch[1], patch_size=patch[2], num_stages=len(depths), hidden_sizes=widths, depths=depths,
        hidden_act="gelu", layer_scale_init_value=1e-6, drop_path_rate=DROP_PATH,
    )  # fmt: skip
    last = widths[-1] if widths else 0
    # The last norm of transformers' class is no part of CLIP, whose stages are read as they are.
    unused = {"layernorm.weight": torch.ones(last), "layernorm.bias": torch.zeros(last)}
    return _filled("image", ConvNextModel, config, tensors | unused)


def text_tower(tensors: dict[str, Tensor]) -> Any:
    """The CLIPTextModelWithProjection of tensors under transformers' names, the projection not yet transposed. Raises InputError."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocabulary, width = _shape("text", tensors, "text_model.embeddings.token_embedding.weight", 2)
    projection = _shape("text", tensors, "text_projection.weight", 2)[1]
    if not width or width % HEAD_WIDTH:
        raise InputError(f"the text tower has width {width}, expected a multiple of {HEAD_WIDTH}; {GIVE}")
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, projection_dim=projection, num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=_shape("text", tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        num_hidden_layers=_count(tensors, "text_model.encoder.layers."),
        max_position_embeddings=_shape("text", tensors, "text_model.embeddings.position_embedding.weight", 2)[0],
        hidden_act="gelu", layer_norm_eps=1e-5, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=0,
    )  # fmt: skip
    transposed = tensors["text_projection.weight"].T.contiguous()
    return _filled("text", CLIPTextModelWithProjection, config, {**tensors, "text_projection.weight": transposed})


def image_head(head: dict[str, Tensor], tensors: Mapping[str, Tensor], is_ssa: bool) -> dict[str, Tensor]:
    """The tensors of the image head and `logit_scale`; none if `is_ssa` and the checkpoint lacks all of them: SSA reads none.

    tensors: all of CLIP under open_clip's names. Raises InputError if one of them is missing or of a wrong shape.
    """
    if is_ssa and not head:
        return {}
    missing = [name for name in HEAD_NAMES if name not in tensors]
    if missing:
        raise InputError(f"the tensor {missing[0]!r} is missing; {GIVE}")
    last = max(int(name.split(".")[3]) for name in tensors if name.startswith("visual.trunk.stages."))
    width, projection = len(tensors[f"visual.trunk.stages.{last}.blocks.0.conv_dw.bias"]), tensors["text_projection"].shape[1]
    hidden = len(head["fc1.bias"]) if head["fc1.bias"].ndim else 0
    shapes = {
        "norm.weight": (width,), "norm.bias": (width,), "fc1.weight": (hidden, width), "fc1.bias": (hidden,),
        "fc2.weight": (projection, hidden), "logit_scale": (),
    }  # fmt: skip
    for name, expected in shapes.items():
        _check_shape("head", name, head[name], expected)
    return head


def _filled(part: Part, kind: Any, config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """A model of the class `kind` with the weights `tensors`. Raises InputError for a missing tensor or a wrong shape."""
    # Without memory: every tensor is replaced.
    with torch.device("meta"):
        model = kind(config)
    expected = model.state_dict()
    for name, empty in expected.items():
        if name not in tensors:
            raise InputError(f"the tensor {in_open_clip(part, name)!r} is missing; {GIVE}")
        _check_shape(part, name, tensors[name], tuple(empty.shape))
    unknown = next((name for name in tensors if name not in expected), None)
    if unknown is not None:
        raise InputError(
            f"the tensor {in_open_clip(part, unknown)!r} has no place in {kind.__name__} of the other tensors; {GIVE}"
        )
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval()


def _check_shape(part: Part, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise InputError(
            f"{in_open_clip(part, name)!r} gives {name} {tuple(tensor.shape)}, expected {expected} from the other tensors; {GIVE}"
        )


def _shape(part: Part, tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor. Raises InputError if it is missing or its number of axes is not `axes`."""
    official = in_open_clip(part, name)
    if name not in tensors:
        raise InputError(f"the tensor {official!r} is missing; {GIVE}")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes:
        raise InputError(f"{official!r} is {shape}, expected {axes} axes; {GIVE}")
    return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow `prefix` in the names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
