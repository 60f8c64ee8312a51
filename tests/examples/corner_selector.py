"""Reads `corner_tracker`: a feature by frames, a feature of each expression, and in training a measurement."""

import torch
from torch import nn

from rvos_select import Selector


class CornerSelector(Selector):
    requires = ("features.sides", "frames.maps", "measured.soft_overlap")

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(3 + 1, 1)

    def forward(self, batch):
        sides = batch.features["sides"]  # (B, N): of (E, N) each expression's own row
        maps = batch.frames["maps"]  # V arrays (T, h, w, 3), V being 1 or B
        colours = torch.stack([array[:].float().mean((1, 2)) for array in maps])  # (V, T, 3)
        real = batch.frame_mask[..., None]  # (V, T, 1), False in padding
        colours = (colours * real).sum(1) / real.sum(1)  # (V, 3)
        colours = colours[:, None].expand(*sides.shape, 3)  # (B, N, 3)
        return self.layer(torch.cat([colours, sides[..., None]], dim=-1))[..., 0]

    def loss(self, batch):
        overlap = batch.measured["soft_overlap"]  # (B, N, A, T): of each expression its own A objects, zeros in padding
        target = (overlap.sum((2, 3)) > 0).float()  # (B, N); zeros where A is 0
        losses = nn.functional.binary_cross_entropy_with_logits(self(batch), target, reduction="none")
        mask = batch.track_mask  # (B, N)
        return {"loss": ((losses * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()}
