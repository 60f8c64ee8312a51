"""A baseline without time, tracks or words as such: cosine of the mean token and the mean word, each mapped once."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_select.data.batch import Batch
from rvos_select.losses.tracks import bce
from rvos_select.selectors.base import Selector, SelectorConfig


class MeanCosineConfig(SelectorConfig):
    """Settings of the mean-cosine baseline."""

    width: int = Field(default=256, ge=1)
    """Channels of the space in which the cosine is taken."""
    scale: float = 10.0
    """First value of the learned scale of the cosine."""
    positive_weight: float = Field(default=1.5, gt=0)
    """Weight of positives in the binary cross-entropy. Source: SOLA's released code."""


class MeanCosine(Selector):
    """logit = scale · cos(A·mean token, B·mean word) + bias; A and B linear maps without bias."""

    Config = MeanCosineConfig
    static_shapes = True

    def __init__(self, config: MeanCosineConfig) -> None:
        super().__init__(config)
        c = self.config
        self.token_map = nn.Linear(c.token_channels, c.width, bias=False)
        self.word_map = nn.Linear(c.word_channels, c.width, bias=False)
        self.scale = nn.Parameter(torch.tensor(c.scale))
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N); 0 outside `batch.track_mask`."""
        dtype = self.token_map.weight.dtype
        frames = batch.frame_mask[:, None, :, None]
        token = batch.tokens.to(dtype).masked_fill(~frames, 0.0).sum(2) / frames.sum(2).clamp(min=1)
        words = batch.word_mask[..., None]
        word = batch.words.to(dtype).masked_fill(~words, 0.0).sum(1) / words.sum(1).clamp(min=1)
        tracks = F.normalize(self.token_map(token).float(), dim=-1)
        sentence = F.normalize(self.word_map(word).float(), dim=-1)
        cosine = (tracks * sentence[:, None]).sum(-1)
        return (self.scale * cosine + self.bias).masked_fill(~batch.track_mask, 0.0)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars "loss" and "bce", the same number. Raises ValueError without a target."""
        if batch.target is None:
            raise ValueError("mean-cosine's loss needs Batch.target; this split hides its ground truth")
        logits = self(batch)
        target, counted = batch.target.to(logits.dtype), batch.word_mask.any(1)
        value = bce(logits, target, batch.track_mask, counted, self.config.positive_weight)
        return {"loss": value, "bce": value}
