"""Low-rank adaptation of GroundingDINO's linear layers (loralib's, rank 32, lora_alpha 1): y = (W + BA / 32) x + b."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.trackers.referdino.names import RANK

EXCLUDED = r"(self_attn|encoder_attn_text)\.(query|key|value|out_proj)$|bbox_embed\."
"""Layers of encoder and decoder without LoRA. In the release the attentions' projections are packed in one parameter, not
linear layers (`GroundingDINO/utils.py` also leaves out `out_proj` and `bbox_embed`)."""


class LoraLinear(nn.Linear):
    """A linear layer with frozen weight and bias, and `lora_A` (32, in), `lora_B` (out, 32), which are trained.

    First values: A Kaiming uniform (a = sqrt(5)), B zero. Unlike loralib's, it does not merge itself in evaluation mode, so that
    a state is the same in both modes.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.lora_A = nn.Parameter(self.weight.new_empty(RANK, linear.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(linear.out_features, RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from x (..., in)."""
        return super().forward(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) / RANK

    def merged(self) -> nn.Linear:
        """A plain linear layer with the weight W + BA / 32."""
        with torch.no_grad():
            linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
            linear.weight = nn.Parameter(self.weight + self.lora_B @ self.lora_A / RANK)
            if self.bias is not None:
                linear.bias = nn.Parameter(self.bias.clone())
        return linear.train(self.training)


def lora_layers(model: nn.Module, encoder: bool = True) -> list[str]:
    """Names of the linear layers of a `GroundingDinoForObjectDetection` that have LoRA in the release: 122 of Swin-T and -B.

    encoder: with the encoder's; without them (`enc_lora: false` of a2d_swint) 38 remain.
    """
    parts = "encoder|decoder" if encoder else "decoder"
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.match(rf"model\.({parts})\.", name) and not re.search(EXCLUDED, name)
    ]


def add_lora(model: nn.Module, encoder: bool = True) -> list[str]:
    """Replace the layers of `lora_layers` by `LoraLinear`, in place; returns their names. Other parameters keep their state."""
    names = lora_layers(model, encoder)
    for name in names:
        _replace(model, name, LoraLinear(_linear(model, name)))
    return names


def merge_lora(model: nn.Module) -> None:
    """Replace each `LoraLinear` of `model` by a plain layer with its product in the weight, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            _replace(model, name, module.merged())


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
