"""ReferDINO's grounding-guided deformable mask decoder (section 3.2): queries that gather mask features around their boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 8


class MaskDecoder(nn.ModuleList):
    """The released mask decoder: GroundingDINO's decoder layer three times, on one level with 16 points. Dropout is 0.

    channels: C; hidden: width of the feed-forward layers; layers: number of layers; points: sampling points of each head.
    """

    def __init__(self, channels: int = 256, hidden: int = 1024, layers: int = 3, points: int = 16) -> None:
        super().__init__(MaskLayer(channels, hidden, points) for _ in range(layers))

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        reference: Tensor,
        features: Tensor,
        real: Tensor,
        text: Tensor,
        text_mask: Tensor,
    ) -> Tensor:
        """Mask embeddings (K, Q, C), whose products with the features of cells are mask logits.

        queries, positions: (K, Q, C); reference: (K, Q, 4), cxcywh as parts of the whole map; features: (K, C, h, w) with mask
        real: bool (K, h, w); text: (K, L, C) with mask text_mask: bool (K, L). Masks are True where real.
        """
        # Finite, so that a text of pads alone gives equal weights.
        pads = (~text_mask).to(text.dtype) * torch.finfo(text.dtype).min
        for layer in self:
            queries = layer(queries, positions, reference, features, real, text, pads)
        return queries


class MaskLayer(nn.Module):
    """Self-attention, attention to the text, deformable attention to the features, feed-forward; each plus LayerNorm.

    Parameters have the released names: norm2 follows the self-attention, norm1 the deformable attention.
    """

    def __init__(self, channels: int, hidden: int, points: int) -> None:
        super().__init__()
        self.cross_attn = DeformableAttention(channels, points)
        self.norm1 = nn.LayerNorm(channels)
        self.ca_text = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.catext_norm = nn.LayerNorm(channels)
        self.self_attn = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, positions: Tensor, reference: Tensor, features: Tensor, real: Tensor, text: Tensor, pads: Tensor
    ) -> Tensor:
        """New x (K, Q, C). pads: (K, L), added to the attention scores of the words; the rest as in `MaskDecoder.forward`."""
        query = x + positions
        x = self.norm2(x + self.self_attn(query, query, x, need_weights=False)[0])
        x = self.catext_norm(x + self.ca_text(x + positions, text, text, key_padding_mask=pads, need_weights=False)[0])
        x = self.norm1(x + self.cross_attn(x + positions, reference, features, real))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class DeformableAttention(nn.Module):
    """Deformable attention (Zhu et al. 2021) to one map, around boxes.

    First values: offsets of point k are k + 1 steps in the direction of the head, all points weigh the same.
    """

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        self.points = points
        self.sampling_offsets = nn.Linear(channels, HEADS * points * 2)
        self.attention_weights = nn.Linear(channels, HEADS * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
        steps = torch.stack([angles.cos(), angles.sin()], -1)
        steps = steps / steps.abs().amax(-1, keepdim=True)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((steps[:, None] * torch.arange(1, points + 1)[:, None]).flatten())

    def forward(self, query: Tensor, reference: Tensor, features: Tensor, real: Tensor) -> Tensor:
        """(K, Q, C) from query (K, Q, C), boxes (K, Q, 4), features (K, C, h, w) with mask real (K, h, w); pads count as 0."""
        batch, number, channels = query.shape
        values = self.value_proj(features.permute(0, 2, 3, 1)).masked_fill(~real[..., None], 0)
        values = values.permute(0, 3, 1, 2).reshape(batch * HEADS, channels // HEADS, *real.shape[1:])
        offsets = self.sampling_offsets(query).view(batch, number, HEADS, self.points, 2)
        weights = self.attention_weights(query).view(batch, number, HEADS, self.points).softmax(-1)
        boxes = reference[:, :, None, None]
        places = boxes[..., :2] + offsets / self.points * boxes[..., 2:] * 0.5
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
        # (K * heads, C / heads, Q, points); outside of the map values are 0.
        samples = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        sums = (samples * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        return self.output_proj(sums.reshape(batch, channels, number).transpose(1, 2))
