"""A checkpoint of Meta's (`sam2_hiera_large.pt`, `sam2.1_hiera_tiny.pt` ...) as a folder of transformers' Sam2VideoModel.

The configuration follows from the tensors. Every tensor is used; one that is missing, unknown or of another shape is an error.
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
from rvos_cache.trackers.sam2.names import SHARED, model_size, to_transformers


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion. version: "2" or "2.1"; size: letter of Meta's configuration files (t, s, b+, l); tensors: how
    many of the checkpoint's tensors were used; unread: other entries of the file, such as the state of an optimiser."""

    version: str
    size: str
    tensors: int
    unread: tuple[str, ...]


def convert_sam2(checkpoint: Path, out: Path) -> Conversion:
    """Write the folder `out` from a checkpoint file; only tensors are read, no code of the file is run.

    Raises InputError if `out` exists, or the file is not a whole checkpoint of SAM 2 or 2.1.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    if out.exists():
        raise InputError(f"{out}: already exists; choose another folder or remove it")
    tensors, unread = read_tensors(checkpoint)
    try:
        model = sam2_video_model(tensors)
        size, version = model_size({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    result = Conversion(version, size.letter, len(tensors), unread)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        record = {"source": checkpoint.name, "version": version, "tensors": result.tensors, "unread": unread}
        write_json(folder / "conversion.json", record)
    return result


def read_tensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The model's tensors of a checkpoint file, under "model" or at its top, and the names of its other entries.

    Raises InputError if it cannot be read, or holds anything else than tensors there.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give a checkpoint of SAM 2 (.pt)") from error
    # Which exception torch raises for another kind of file depends on the file.
    except Exception as error:
        raise InputError(
            f"{path}: not a checkpoint of tensors ({type(error).__name__}); give a checkpoint of SAM 2 (.pt) as Meta released it"
        ) from error
    nested = isinstance(content, dict) and isinstance(content.get("model"), dict)
    model = content["model"] if nested else content
    if not isinstance(model, dict) or not model or not all(isinstance(t, Tensor) for t in model.values()):
        raise InputError(f"{path}: expected named tensors, at the top or under 'model'; give a checkpoint of SAM 2 (.pt)")
    return model, tuple(sorted(str(name) for name in content if name != "model")) if nested else ()


def sam2_video_model(tensors: Mapping[str, Tensor]) -> Any:
    """A Sam2VideoModel with the weights `tensors`, whose names are Meta's. To be saved: buffers that are not saved have no data.

    Raises InputError that names a tensor that is unknown, missing or of another shape.
    """
    from transformers import Sam2VideoModel

    config = sam2_config({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    renamed, sources = to_transformers(tensors)
    # Without memory: every tensor is replaced.
    with torch.device("meta"):
        model = Sam2VideoModel(config)
    expected = model.state_dict()
    # transformers stores it twice; safetensors refuses tensors that share memory.
    renamed[SHARED] = renamed.get("shared_image_embedding.positional_embedding", torch.empty(0)).clone()
    for name, tensor in renamed.items():
        if name not in expected:
            raise InputError(f"the tensor {sources[name][0]!r} has no counterpart in transformers' Sam2VideoModel ({name})")
        if tensor.shape != expected[name].shape:
            names = " + ".join(sources.get(name, (name,)))
            raise InputError(f"{names!r} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
    missing = sorted(expected.keys() - renamed.keys())
    if missing:
        raise InputError(f"the tensor for {missing[0]!r} is missing ({len(missing)} are); give a whole checkpoint of SAM 2")
    model.load_state_dict({name: tensor.float() for name, tensor in renamed.items()}, assign=True)
    return model


def sam2_config(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """transformers' configuration of a checkpoint with Meta's names. Raises InputError if it is none of the released sizes."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VisionConfig

    size, version = model_size(shapes)
    widths = [size.width << stage for stage in range(4)]
    hiera = Sam2HieraDetConfig(
        hidden_size=size.width,
        num_attention_heads=size.heads,
        blocks_per_stage=list(size.blocks),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[size.heads << stage for stage in range(4)],
        window_size_per_stage=list(size.windows),
        window_positional_embedding_background_size=[size.background] * 2,
        global_attention_blocks=list(size.global_blocks),
    )
    return Sam2VideoConfig(
        vision_config=Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=widths[::-1]),
        enable_occlusion_spatial_embedding=version == "2.1",
        enable_temporal_pos_encoding_for_object_pointers=version == "2.1",
    )
