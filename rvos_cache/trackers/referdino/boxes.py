"""Boxes of queries: their encoding as positions, and their refinement. Boxes are (centre x, centre y, width, height) in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 10000.0
EPS = 1e-3
"""Limit of the inverse sigmoid in ReferDINO and in GroundingDINO's own code. transformers has 1e-5 instead."""


def inverse_sigmoid(x: Tensor, eps: float = EPS) -> Tensor:
    """log(max(x, eps) / max(1 - x, eps)) of x, clamped to [0, 1] (`dino_util/misc.py` of the released code)."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def refined(offsets: Tensor, reference: Tensor, eps: float = EPS) -> Tensor:
    """Boxes (..., 4): sigmoid(offsets + inverse sigmoid of the reference), both (..., 4)."""
    return (offsets + inverse_sigmoid(reference, eps)).sigmoid()


def sine_positions(boxes: Tensor, channels: int) -> Tensor:
    """Encoding (..., 2 * channels) of boxes (..., 4): channels / 2 interleaved sines and cosines of y, x, width and height each."""
    size = channels // 2
    exponents = torch.arange(size, dtype=torch.float32, device=boxes.device).div(2, rounding_mode="floor") * 2 / size
    # The released code encodes y before x.
    angles = boxes[..., [1, 0, 2, 3], None] * (2 * math.pi) / TEMPERATURE**exponents
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-3)


class Mlp(nn.Module):
    """Linear layers of the given widths with ReLU between them; GroundingDINO's names (`layers.0.weight`)."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in zip(widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., widths[-1]) from x (..., widths[0])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
