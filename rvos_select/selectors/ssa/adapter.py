"""SSA's adapter (Pan et al., CVPR 2025, section 3.2, Eqs. 3 and 4): sentence and words meet a stage of CLIP's image tower.

Unlike Eq. 3, the released code gives both attentions a residual and a LayerNorm, so that the attention to the one sentence vector
varies over the map. Letters: F frames, C_i channels of the stage, h w its cells, C channels of the adapter, L words, D their channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_select.selectors.ssa.blocks import CrossAttention, Mlp, grid_positions, map_of, sequence_positions, tokens_of

DROPOUT = 0.1
"""Of the attention weights."""


class Adapter(nn.Module):
    """g₁ s + g₂ w + g₃ r: what the sentence, the words and a convolution make of a map, weighed by a gate of each frame."""

    def __init__(self, stage_channels: int, channels: int, word_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_v = nn.Conv2d(stage_channels, channels, 1)
        self.linear_l = nn.Linear(word_channels, channels)
        self.cross_attention = CrossAttention(channels, DROPOUT)
        self.up_v = nn.Linear(channels, stage_channels)
        self.conv1 = nn.Conv2d(stage_channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, stage_channels, 1)
        self.gate = Mlp(3 * stage_channels, channels, 3)

    def forward(self, maps: Tensor, sentence: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """maps (F, C_i, h, w), sentence (F, D), words (F, L, D), word_mask bool (F, L) -> (F, C_i, h, w)."""
        size = (maps.shape[2], maps.shape[3])
        position = grid_positions(size, self.channels, False, maps.device)
        of_sentence, of_words, of_map = self.streams(tokens_of(maps), position, sentence, words, word_mask)
        gates = self.gates(of_sentence.mean(1), of_words.mean(1), of_map.mean(1))
        return map_of(mixed(gates, of_sentence, of_words, of_map), size)

    def streams(
        self, tokens: Tensor, position: Tensor, sentence: Tensor, words: Tensor, word_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """s, w and r, each (F, K, C_i), of K tokens of a stage (F, K, C_i) at a position (K, C) or (F, K, C); words as in `forward`.

        All of its convolutions see one cell, so tokens may be the cells of a map or means of them.
        """
        x = F.linear(tokens, self.linear_v.weight.flatten(1), self.linear_v.bias)
        order = sequence_positions(words.shape[1], self.channels, words.device)
        of_words = self.cross_attention(x, self.linear_l(words), position, order, word_mask)
        of_sentence = self.cross_attention(x, self.linear_l(sentence)[:, None], position)
        hidden = F.relu(F.linear(tokens, self.conv1.weight.flatten(1), self.conv1.bias))
        of_map = F.relu(F.linear(hidden, self.conv2.weight.flatten(1), self.conv2.bias)) + tokens
        return self.up_v(of_sentence), self.up_v(of_words), of_map

    def gates(self, of_sentence: Tensor, of_words: Tensor, of_map: Tensor) -> Tensor:
        """(F, 3), summing to 1, of the means of the three streams, (F, C_i) each."""
        return self.gate(torch.cat([of_sentence, of_words, of_map], 1)).softmax(1)  # type: ignore[no-any-return]


def mixed(gates: Tensor, of_sentence: Tensor, of_words: Tensor, of_map: Tensor) -> Tensor:
    """(F, K, C_i): the three streams (F, K, C_i) weighed by gates (F, 3)."""
    g = gates[:, :, None, None]
    return g[:, 0] * of_sentence + g[:, 1] * of_words + g[:, 2] * of_map
