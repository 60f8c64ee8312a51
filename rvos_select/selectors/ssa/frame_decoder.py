"""SSA's frame decoder: queries of each frame that begin as the sentence, with masked attention to the maps (Pan et al., CVPR 2025,
section 3.2; Cheng et al., "Mask2Former", CVPR 2022, section 3.2).

Letters: F frames, Q queries, C channels, h w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_select.selectors.ssa.blocks import CrossAttention, FeedForward, Mlp, SelfAttention, grid_positions, tokens_of


class FrameDecoded(NamedTuple):
    """queries: (layers, F, Q, C) after the shared norm, of each layer; logits: (layers + 1, F, Q, 2), referred and none, and masks:
    (layers + 1, F, Q, h, w), the first of both before any layer."""

    queries: Tensor
    logits: Tensor
    masks: Tensor


class FrameDecoder(nn.Module):
    """Layers of attention to one level under the mask predicted before, among the queries, and to the sentence."""

    def __init__(self, channels: int, hidden: int, layers: int, queries: int, levels: int) -> None:
        super().__init__()
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(channels) for _ in range(layers))
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(channels) for _ in range(layers))
        self.text_cross_attention_layers = nn.ModuleList(CrossAttention(channels) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(channels, hidden) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.query_embed = nn.Embedding(queries, channels)
        self.level_embed = nn.Embedding(levels, channels)
        self.class_embed = nn.Linear(channels, 2)
        self.mask_embed = Mlp(channels, channels, channels, channels)

    def forward(self, levels: Sequence[Tensor], mask_features: Tensor, text: Tensor) -> FrameDecoded:
        """levels: maps (F, C, h, w), coarse first; mask_features (F, C, h, w); text (F, C)."""
        keys = [tokens_of(level) + embed for level, embed in zip(levels, self.level_embed.weight)]
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        positions = [grid_positions(size, text.shape[1], True, text.device) for size in sizes]
        embed = self.query_embed.weight
        x, sentence = text[:, None].expand(-1, len(embed), -1), text[:, None]
        normed = self.decoder_norm(x)
        queries, logits, masks = [], [self.class_embed(normed)], [self._masks(normed, mask_features)]
        for i, (cross, attend, read, feed) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.text_cross_attention_layers,
                self.transformer_ffn_layers,
            )
        ):
            level = i % len(levels)
            x = cross(x, keys[level], embed, positions[level], visible_cells(masks[-1], sizes[level]))
            x = feed(read(attend(x, embed), sentence, embed))
            normed = self.decoder_norm(x)
            queries.append(normed)
            logits.append(self.class_embed(normed))
            masks.append(self._masks(normed, mask_features))
        return FrameDecoded(torch.stack(queries), torch.stack(logits), torch.stack(masks))

    def _masks(self, normed: Tensor, mask_features: Tensor) -> Tensor:
        return torch.einsum("fqc,fchw->fqhw", self.mask_embed(normed), mask_features.to(normed.dtype))


@torch.no_grad()
def visible_cells(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """The cells of a level of `size` (h, w) inside mask logits (F, Q, H, W): bool (F, Q, h·w)."""
    return (F.interpolate(masks.float(), size, mode="bilinear", align_corners=False) >= 0).flatten(2)
