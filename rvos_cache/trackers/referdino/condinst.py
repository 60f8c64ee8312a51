"""The mask head of ReferDINO's Table 4 that takes the place of the mask decoder: conditional convolutions (Tian et al., ECCV 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = 8
"""Of the convolutions between the first and the last. Source: Tian et al., section 3.1."""
COORDINATES = 2


class CondInst(nn.Module):
    """Three 1x1 convolutions for each query, whose weights a linear layer gives, on the features and the offset from the query's box.

    channels: C. No released configuration of ReferDINO builds its own; the sizes are those of CondInst and of ReferFormer.
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.sizes = [(channels + COORDINATES, CHANNELS), (CHANNELS, CHANNELS), (CHANNELS, 1)]
        self.controller = nn.Linear(channels, sum(n * m + m for n, m in self.sizes))
        nn.init.xavier_uniform_(self.controller.weight)
        nn.init.zeros_(self.controller.bias)

    def forward(self, queries: Tensor, boxes: Tensor, features: Tensor) -> Tensor:
        """Mask logits (K, Q, h, w) of queries (K, Q, C), boxes (K, Q, 4), cxcywh as parts of the map, and features (K, C, h, w)."""
        k, _, h, w = features.shape
        parts = self.controller(queries).split([size for n, m in self.sizes for size in (n * m, m)], -1)
        weights = [part.unflatten(-1, (m, n)) for part, (n, m) in zip(parts[0::2], self.sizes)]
        biases = parts[1::2]
        y, x = ((torch.arange(n, device=features.device) + 0.5) / n for n in (h, w))
        grid = torch.stack([x.expand(h, w), y[:, None].expand(h, w)])
        # The first convolution is linear: its part on the features needs no copy of them for each query.
        first, offset = weights[0].split([features.shape[1], COORDINATES], -1)
        on_grid = torch.einsum("kqmc,chw->kqmhw", offset, grid)
        at_centre = torch.einsum("kqmc,kqc->kqm", offset, boxes[..., :2].to(offset.dtype))
        x = torch.einsum("kqmc,kchw->kqmhw", first, features) + on_grid + (biases[0] - at_centre)[..., None, None]
        for weight, bias in zip(weights[1:], biases[1:]):
            x = torch.einsum("kqmc,kqchw->kqmhw", weight, x.relu()) + bias[..., None, None]
        return x.reshape(k, queries.shape[1], h, w)
