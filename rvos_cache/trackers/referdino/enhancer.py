"""ReferDINO's cross-modal temporal enhancer (section 3.2, Eq. 3): each tracked query attends over the frames."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

HEADS = 8
FIRST_VALUES = {r"norm\d?(\.\d+)?\.weight$": 1.0, r"(norm\d?(\.\d+)?\.bias|in_proj_bias|out_proj\.bias)$": 0.0}
"""Names of tensors whose first values are the same in every new enhancer -> that value."""


class Enhancer(nn.Module):
    """The released `TemporalDecoder`; parameters have its names (`layer.0.self_attn...`, `norm.0`). Dropout is 0.

    channels: C; hidden: width of the feed-forward layers; layers: blocks. Without layers the queries are returned as they are.
    First values are PyTorch's own, as in the released code.
    """

    def __init__(self, channels: int = 256, hidden: int = 2048, layers: int = 3) -> None:
        super().__init__()
        self.layer = nn.ModuleList(EnhancerBlock(channels, hidden) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(layers))

    def is_untrained(self) -> bool:
        """Whether no optimiser has changed it: all norms and all biases of attentions are those of a new one. False without layers.

        ReferDINO trains it on clips only: in the released files of images (`coco_*`, `a2d_*`) it has its first, random values.
        """
        values = [
            (tensor, value)
            for name, tensor in self.state_dict().items()
            for end, value in FIRST_VALUES.items()
            if re.search(end, name)
        ]
        return bool(values) and all(bool((tensor == value).all()) for tensor, value in values)

    def forward(self, queries: Tensor, sentence: Tensor, frames: Tensor | None = None) -> Tensor:
        """Enhanced queries (B, T, Q, C) of tracked queries (B, T, Q, C) and the sentence feature of each frame (B, T, C).

        frames: bool (B, T), True where real; the others are not attended to. Queries do not influence each other.
        """
        batch, time, number, channels = queries.shape
        x = queries.transpose(0, 1).reshape(time, batch * number, channels)
        target = sentence.transpose(0, 1).repeat_interleave(number, 1)
        pads = None
        if frames is not None:
            # Finite, so that frames of a clip without real ones do not become NaN.
            pads = (~frames).repeat_interleave(number, 0).to(x.dtype) * torch.finfo(x.dtype).min
        for block, norm in zip(self.layer, self.norm):
            x, target = block(x, target, pads)
            x = norm(x + target)
        return x.reshape(time, batch, number, channels).transpose(0, 1)


class EnhancerBlock(nn.Module):
    """Self-attention of the query over the frames, then a decoder layer from the sentence features to the query."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, HEADS)
        self.norm = nn.LayerNorm(channels)
        self.decoder = nn.TransformerDecoderLayer(channels, HEADS, hidden, dropout=0.0)

    def forward(self, x: Tensor, target: Tensor, pads: Tensor | None) -> tuple[Tensor, Tensor]:
        """New x and target, both (T, rows, C); pads: (rows, T), added to the attention scores of the frames."""
        x = self.norm(x + self.self_attn(x, x, x, key_padding_mask=pads, need_weights=False)[0])
        return x, self.decoder(target, x, tgt_key_padding_mask=pads, memory_key_padding_mask=pads)
