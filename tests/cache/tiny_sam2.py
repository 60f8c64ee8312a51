"""A SAM 2 checkpoint small enough to write in a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tiny_grounding_dino import tiny_grounding_dino

SIDE = 128
"""Pixels of the model's square input."""
WIDTH = 128
"""Channels of its object pointers: the memory attention requires a multiple of 64 above 64."""
GRID: dict[str, Any] = {"points_per_side": 4, "predicted_iou": 0, "stability": 0, "prompt_every": 3}
"""Settings of `sam2-grid` with which a random checkpoint has tracks."""
BOX: dict[str, Any] = {"box_threshold": 0.5, "stability": 0, "prompt_every": 3, "tracks_per_expression": 2}
"""The same of `sam2-box`."""


@contextmanager
def without_gpu() -> Iterator[None]:
    """Run frozen models on the CPU, also where there is a GPU: there SAM 2 computes in bfloat16, whose rounding is larger than
    what most tests look for, and a process that has used CUDA cannot fork."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


def tiny_sam2(folder: Path, seed: int = 12, present: float = 0.5, gain: float = 1.5, **changes: Any) -> Path:
    """A random Sam2VideoModel of 1.5 M parameters in `folder`; changes: to its configuration.

    present: bias of the object score; gain: of the weights behind the image encoder. With a lower gain, masks and pointers hardly
    differ between objects; with a higher one, rounding errors grow from frame to frame.
    """
    import torch
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoMaskDecoderConfig, Sam2VideoPromptEncoderConfig

    hiera = Sam2HieraDetConfig(
        hidden_size=16, image_size=[SIDE, SIDE], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads=1, num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[3],
    )  # fmt: skip
    grid = SIDE // 16
    vision = Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[128, 64, 32, 16], fpn_hidden_size=WIDTH,
        backbone_feature_sizes=[[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
    )  # fmt: skip
    small = {
        "image_size": SIDE, "memory_attention_hidden_size": WIDTH, "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 64, "memory_attention_rope_feat_sizes": [grid, grid],
        "memory_encoder_hidden_size": WIDTH, "mask_downsampler_embed_dim": WIDTH, "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 64, "memory_fuser_layer_scale_init_value": 0.5,
    }  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=WIDTH, image_size=SIDE),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(hidden_size=WIDTH, mlp_dim=64, iou_head_hidden_dim=32),
        **{**small, **changes},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam2VideoModel(config)
        # With the default initialisation, memories and prompts hardly change a mask.
        for name, tensor in model.named_parameters():
            if "norm" in name:
                continue
            scale = 1.0 if name.startswith("vision_encoder") else gain
            is_matrix = tensor.ndim > 1 and tensor[0].numel() > 1
            torch.nn.init.normal_(tensor, std=scale / tensor[0].numel() ** 0.5 if is_matrix else 0.3)
        with torch.no_grad():
            model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(present)
        model.save_pretrained(str(folder))
    return folder


@lru_cache
def shared_checkpoint() -> str:
    """One SAM 2 checkpoint, for the tests of a process that do not change it."""
    return str(tiny_sam2(fresh_folder()))


@lru_cache
def shared_grounding() -> str:
    """One GroundingDINO checkpoint, for the tests of a process that do not change it."""
    return str(tiny_grounding_dino(fresh_folder()))


def fresh_folder() -> Path:
    """An empty folder, deleted when the process ends."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="tiny-sam2-"))
    return Path(_FOLDERS[-1].name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
