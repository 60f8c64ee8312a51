"""Recorded inputs and outputs of Meta's SAM 2 (commit 2b90b9f), and the weights they were recorded with.

`tests/golden/make_sam2.py` records them. The tensors' names: `input.*`, and `output.VERSION.*` for VERSION sam2.0 and sam2.1.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from functools import cache
from typing import Any

import torch
from golden_values import FOLDER, load_golden
from torch import Tensor

SIDE = 128
"""Pixels of the model's square input; the model is otherwise Hiera-T."""
PROMPT_FRAME = 3
VERSIONS = ("sam2.0", "sam2.1")
GRID = {"points_per_side": 16, "predicted_iou": 0.3, "stability": 0.5, "nms_iou": 0.97}
"""Settings of the recorded grids."""
__all__ = ["FOLDER"]
WIDE = {
    "vision_encoder.backbone.pos_embed", "vision_encoder.backbone.pos_embed_window", "memory_temporal_positional_encoding",
    "no_memory_embedding", "no_memory_positional_encoding", "no_object_pointer", "occlusion_spatial_embedding_parameter",
    "prompt_encoder.not_a_point_embed.weight", "prompt_encoder.no_mask_embed.weight", "prompt_encoder.point_embed.weight",
    "mask_decoder.iou_token.weight", "mask_decoder.obj_score_token.weight", "mask_decoder.mask_tokens.weight",
}  # fmt: skip
"""Tokens and position codes, whose values are 0.3 * randn."""
GAINS = {"memory_attention.": 0.6, "memory_encoder.": 1.6, "mask_decoder.": 1.5, "prompt_encoder.": 1.5}
"""Factors of the matrices of a module, so that outputs depend on every input."""
SHARED = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors, see `golden_values.load_golden`."""
    return load_golden("sam2.safetensors")


def weight(name: str, shape: torch.Size) -> Tensor:
    """The value of the tensor that transformers calls `name`."""
    name = SHARED[0] if name == SHARED[1] else name
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name == SHARED[0]:
        return x
    if name in WIDE:
        return 0.3 * x
    if name == "mask_decoder.pred_obj_score_head.proj_out.bias":
        return 0.1 * x + 1.1
    if len(shape) >= 2:
        gain = next((gain for module, gain in GAINS.items() if name.startswith(module)), 1.0)
        return gain * x / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x


@cache
def golden_model(version: str) -> Any:
    """The Sam2VideoModel whose outputs were recorded."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    grid = SIDE // 16
    is_21 = version == "sam2.1"
    config = Sam2VideoConfig(
        image_size=SIDE,
        prompt_encoder_config={"image_size": SIDE},
        memory_attention_rope_feat_sizes=[grid, grid],
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_feature_sizes": [[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
            "backbone_config": {"model_type": "sam2_hiera_det_model", "image_size": [SIDE, SIDE]},
        },
        enable_occlusion_spatial_embedding=is_21,
        enable_temporal_pos_encoding_for_object_pointers=is_21,
    )
    with torch.random.fork_rng(devices=[]):
        model = Sam2VideoModel(config)
    model.load_state_dict({name: weight(name, tensor.shape) for name, tensor in model.state_dict().items()})
    return model.eval()


@cache
def golden_checkpoint(version: str) -> str:
    """A folder with `golden_model(version)`; deleted when the process ends."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix=f"{version}-"))
    golden_model(version).save_pretrained(_FOLDERS[-1].name)
    return _FOLDERS[-1].name


@cache
def meta_tensors(version: str) -> dict[str, Tensor]:
    """The weights of `golden_model(version)` under Meta's names, as tests/golden/sam2_names.txt lists them."""
    state = golden_model(version).state_dict()
    tensors: dict[str, Tensor] = {}
    for line in (FOLDER / "sam2_names.txt").read_text("utf-8").splitlines():
        ours, *meta = line.split()
        if ours in state:
            tensors.update(zip(meta, state[ours].chunk(len(meta))))
    return tensors


def unpack(masks: Tensor) -> Any:
    """Masks (..., W / 8) packed along the last axis as bool (..., W)."""
    import numpy as np

    return np.unpackbits(masks.numpy(), axis=-1).astype(bool)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
