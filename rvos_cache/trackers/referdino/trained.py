"""Which parameters ReferDINO trains, and the noise of the frozen parts while it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoDropPath
from transformers.models.swin.modeling_swin import SwinDropPath, SwinLayer

from rvos_cache.trackers.referdino.live import LiveReferDino
from rvos_cache.trackers.referdino.mask_decoder import MaskLayer
from rvos_cache.trackers.referdino.stages import STAGE1

DROP_PATH = 0.2
"""Stochastic depth of the last block of Swin, growing linearly from 0. Source: configuration of the released code."""
GROUPS = {
    "lora": r"grounding\..*\.lora_[AB]",
    "box": r"head\.box\..*",
    "feat_map": r"grounding\.model\.text_projection\..*",
    "bert_norms": r"grounding\.model\.text_backbone\..*LayerNorm\..*",
    "norm0": rf"grounding\.{re.escape(STAGE1)}.*",
    "pyramid": r"head\.pyramid\..*",
    "mask_decoder": r"head\.mask_decoder\..*",
    "enhancer": r"head\.enhancer\..*",
}
"""Group -> names of its parameters. Source: list of trained names of the released code, and its `mark_only_lora_as_trainable`."""
LEFT_OUT = {"text_ca": "ca_text", "deform_ca": "cross_attn"}
"""Ablation -> the attention of the mask decoder's layers that it leaves out."""


def select_trained(live: LiveReferDino, single_frame: bool, left_out: tuple[str, ...] = ()) -> dict[str, nn.Parameter]:
    """Freeze all parameters but those that ReferDINO trains, which are returned by name.

    single_frame: clips of one frame, which the enhancer never sees; left_out: names of LEFT_OUT, see `leave_out`.
    """
    live.requires_grad_(False)
    trained = {}
    # Each shared parameter once, under a name that belongs to a group.
    for name, parameter in live.named_parameters(remove_duplicate=False):
        group = group_of(name)
        is_left_out = any(f".{LEFT_OUT[one]}." in name for one in left_out)
        if group is None or (single_frame and group == "enhancer") or is_left_out or parameter.requires_grad:
            continue
        parameter.requires_grad_(True)
        trained[name] = parameter
    return trained


def group_of(name: str) -> str | None:
    """The group of GROUPS that a parameter of a `LiveReferDino` belongs to, if any."""
    return next((group for group, pattern in GROUPS.items() if re.fullmatch(pattern, name)), None)


def counts(trained: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Number of trained values of each group."""
    out = dict.fromkeys(GROUPS, 0)
    for name, parameter in trained.items():
        out[str(group_of(name))] += parameter.numel()
    return out


def leave_out(live: LiveReferDino, names: tuple[str, ...]) -> None:
    """Let attentions of the mask decoder add nothing (Table 4): their output projections become zero, in place.

    So what is written has the released tensors, and the norms behind them stay.
    """
    for layer in live.head.mask_decoder.modules():
        if isinstance(layer, MaskLayer):
            for name in names:
                attention = getattr(layer, LEFT_OUT[name])
                projection = attention.out_proj if name == "text_ca" else attention.output_proj
                with torch.no_grad():
                    projection.weight.zero_()
                    projection.bias.zero_()


def set_mode(live: LiveReferDino, noise: bool) -> None:
    """Training mode, in which the frozen parts are as in evaluation, but with `noise` for what the released code leaves on:
    stochastic depth in Swin and in the fusion layers, and BERT's dropout."""
    live.train()
    live.grounding.eval()
    if not noise:
        return
    live.grounding.model.text_backbone.train()
    for module in live.grounding.modules():
        if isinstance(module, GroundingDinoDropPath | SwinDropPath):
            module.train()


def set_drop_path(live: LiveReferDino) -> None:
    """Give the blocks of Swin the stochastic depth that the released code trains with; checkpoints of transformers have another."""
    blocks: list[Any] = [module for module in live.grounding.model.backbone.modules() if isinstance(module, SwinLayer)]
    for i, block in enumerate(blocks):
        block.drop_path = SwinDropPath(DROP_PATH * i / max(1, len(blocks) - 1))
