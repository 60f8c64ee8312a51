"""SSA's pixel decoder: Mask2Former's multi-scale deformable attention, with a bi-directional fusion of image and text before each
layer (Pan et al., CVPR 2025, section 3.2; Cheng et al., CVPR 2022; Zhu et al., "Deformable DETR", ICLR 2021, Eq. 3).

Letters: F frames, C channels, L text tokens (one, the sentence), K cells of all levels, h w cells of one level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rvos_select.selectors.ssa.blocks import HEADS, grid_positions, map_of, tokens_of

LEVELS = 3
"""Maps that attend to each other, of strides 32, 16 and 8."""
POINTS = 4
"""Points that a head samples in each level; no shape of a checkpoint tells heads from points."""
FUSION_HEADS = 4
GROUPS = 32
"""Of the group norms."""
GAMMA = 1e-4
"""First value of the scale of a fusion block's residual."""

Size = tuple[int, int]


class PixelDecoded(NamedTuple):
    """What the decoders read. levels: three maps (F, C, h, w), coarse first; mask_features and map: (F, C, h, w) of stride 4;
    text: (F, C), the sentence after the last fusion, one for each frame."""

    levels: tuple[Tensor, ...]
    mask_features: Tensor
    map: Tensor
    text: Tensor


class FusionAttention(nn.Module):
    """Image tokens and text tokens attend to each other with one matrix of scores: S = (W_v x)(W_l l)ᵀ / √(width / heads)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.v_proj, self.l_proj, self.values_v_proj, self.values_l_proj = (nn.Linear(channels, width) for _ in range(4))
        self.out_v_proj, self.out_l_proj = (nn.Linear(width, channels) for _ in range(2))
        self.dropout = nn.Dropout(0.1)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (F, K, C), text (F, L, C) -> what the text gives to each image token (F, K, C), and the image to each text token.

        mask: bool (F, K), the image tokens that the text attends to; at least one in each row.
        """

        def heads(values: Tensor) -> Tensor:
            return values.unflatten(2, (FUSION_HEADS, -1)).transpose(1, 2)

        query = heads(self.v_proj(x))
        scores = query @ heads(self.l_proj(text)).transpose(2, 3) / math.sqrt(query.shape[-1])
        to_image = self.dropout(scores.softmax(3)) @ heads(self.values_l_proj(text))
        of_text = scores.transpose(2, 3)
        if mask is not None:
            of_text = of_text.masked_fill(~mask[:, None, None], -torch.inf)
        to_text = self.dropout(of_text.softmax(3)) @ heads(self.values_v_proj(x))
        return self.out_v_proj(to_image.transpose(1, 2).flatten(2)), self.out_l_proj(to_text.transpose(1, 2).flatten(2))


class Fusion(nn.Module):
    """x̄ + γ_v ∘ (what the text gives), l̄ + γ_l ∘ (what the image gives), from the normed x̄ and l̄."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layer_norm_v, self.layer_norm_l = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = FusionAttention(channels, width)
        self.gamma_v, self.gamma_l = (nn.Parameter(torch.full((channels,), GAMMA)) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (F, K, C), text (F, L, C), mask (F, K) as in `FusionAttention` -> x and text, of the same shapes."""
        x, text = self.layer_norm_v(x), self.layer_norm_l(text)
        to_image, to_text = self.attn(x, text, mask)
        return x + self.gamma_v * to_image, text + self.gamma_l * to_text


class DeformableAttention(nn.Module):
    """Each query samples `POINTS` points of each level around its own place, in each head (Deformable DETR, Eq. 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(channels, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(channels, HEADS * LEVELS * POINTS)
        self.value_proj, self.output_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Each head begins with a direction of its own, its points one to four cells away.
        angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, POINTS + 1)[:, None]
        offsets = directions[:, None, None] * steps.expand(LEVELS, POINTS, 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, query: Tensor, values: Tensor, centres: Tensor, sizes: Sequence[Size]) -> Tensor:
        """query and values (F, K, C) -> (F, K, C). centres: (K, 2) of the queries' cells in [0, 1]² as x, y; sizes: (h, w) of each
        level."""
        frames, keys = query.shape[:2]
        offsets = self.sampling_offsets(query).view(frames, keys, HEADS, LEVELS, POINTS, 2)
        weights = self.attention_weights(query).view(frames, keys, HEADS, LEVELS * POINTS).softmax(-1)
        per_head = self.value_proj(values).view(frames, keys, HEADS, -1)
        parts, start = [], 0
        for level, (h, w) in enumerate(sizes):
            maps = per_head[:, start : start + h * w].permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (h, w))
            scale = torch.tensor([w, h], device=query.device, dtype=query.dtype)
            places = centres[None, :, None, None] + offsets[:, :, :, level] / scale
            grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
            parts.append(F.grid_sample(maps, grid, align_corners=False))
            start += h * w
        sampled = torch.cat(parts, -1)
        out = (sampled * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        projected: Tensor = self.output_proj(out.view(frames, -1, keys).transpose(1, 2))
        return projected


class DeformableLayer(nn.Module):
    """LayerNorm(x + deformable attention), then a feed-forward layer."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(channels)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, position: Tensor, centres: Tensor, sizes: Sequence[Size]) -> Tensor:
        """x (F, K, C), position (K, C), centres and sizes as in `DeformableAttention` -> (F, K, C)."""
        x = self.norm1(x + self.self_attn(x + position, x, centres, sizes))
        out: Tensor = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return out


class Encoder(nn.Module):
    """The layers, with a fusion block before each unless `fusion` is false."""

    def __init__(self, channels: int, hidden: int, layers: int, fusion_width: int, fusion: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableLayer(channels, hidden) for _ in range(layers))
        self.fusion_layers = nn.ModuleList(Fusion(channels, fusion_width) for _ in range(layers if fusion else 0))


class Transformer(nn.Module):
    """The encoder and the vector of each level."""

    def __init__(self, channels: int, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.level_embed = nn.Parameter(torch.randn(LEVELS, channels))


class NormedConv(nn.Conv2d):
    """A convolution without bias and a group norm."""

    def __init__(self, channels_in: int, channels: int, kernel: int) -> None:
        super().__init__(channels_in, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(GROUPS, channels)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, x: Tensor) -> Tensor:
        """(F, channels_in, h, w) -> (F, channels, h, w)."""
        out: Tensor = self.norm(super().forward(x))
        return out


class PixelDecoder(nn.Module):
    """Stages of CLIP's image tower to maps of C channels. It runs in float32 whatever the autocast, as the released code."""

    def __init__(
        self,
        stage_channels: Sequence[int],
        channels: int,
        hidden: int,
        layers: int,
        fusion_width: int,
        fusion: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        coarse_first = list(stage_channels)[:0:-1]
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, channels, 1), nn.GroupNorm(GROUPS, channels)) for c in coarse_first
        )
        for proj in self.input_proj:
            nn.init.xavier_uniform_(proj[0].weight)  # type: ignore[index]
            nn.init.zeros_(proj[0].bias)  # type: ignore[index]
        self.transformer = Transformer(channels, Encoder(channels, hidden, layers, fusion_width, fusion))
        self.adapter_1 = NormedConv(stage_channels[0], channels, 1)
        self.layer_1 = NormedConv(channels, channels, 3)
        self.mask_features = nn.Conv2d(channels, channels, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        assert self.mask_features.bias is not None
        nn.init.zeros_(self.mask_features.bias)
        self.checkpointing = checkpointing

    def forward(self, stages: Sequence[Tensor], text: Tensor) -> PixelDecoded:
        """stages: four maps (F, C_i, h, w) of strides 4 to 32; text (F, C), the projected sentence."""
        with torch.autocast(text.device.type, enabled=False):
            return self._decode([stage.float() for stage in stages], text.float())

    def _decode(self, stages: Sequence[Tensor], text: Tensor) -> PixelDecoded:
        levels = [proj(stage) for proj, stage in zip(self.input_proj, reversed(stages[1:]))]
        sizes: list[Size] = [(level.shape[2], level.shape[3]) for level in levels]
        channels = text.shape[1]
        position = torch.cat(
            [
                grid_positions(size, channels, True, text.device) + embed
                for size, embed in zip(sizes, self.transformer.level_embed)
            ]
        )
        centres = torch.cat([_centres(size, text.device) for size in sizes])
        x, words = torch.cat([tokens_of(level) for level in levels], 1), text[:, None]
        encoder = self.transformer.encoder
        for i, layer in enumerate(encoder.layers):
            if encoder.fusion_layers:
                x, words = encoder.fusion_layers[i](x, words)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, position, centres, sizes, use_reentrant=False)
            else:
                x = layer(x, position, centres, sizes)
        parts = x.split([h * w for h, w in sizes], 1)
        out = tuple(map_of(part, size) for part, size in zip(parts, sizes))
        fine = self.adapter_1(stages[0])
        top = F.interpolate(out[-1], fine.shape[2:], mode="bilinear", align_corners=False)
        features = F.relu(self.layer_1(fine + top))
        return PixelDecoded(out, self.mask_features(features), features, words[:, 0])


def _centres(size: Size, device: torch.device) -> Tensor:
    """Centres (h·w, 2) of the cells of a level in [0, 1]², as x, y."""
    h, w = size
    y, x = ((torch.arange(n, device=device) + 0.5) / n for n in (h, w))
    return torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1).flatten(0, 1)
