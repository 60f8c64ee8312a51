"""Tracks whose mean token matches the mean word, as mapped by two linear layers, where the track is present."""

import torch
from pydantic import Field
from torch import nn

from rvos_select import Selector, SelectorConfig


class MyConfig(SelectorConfig):
    width: int = Field(64, ge=1)
    """Channels in which tokens and words are compared."""


class MySelector(Selector):
    Config = MyConfig
    requires = ("presence",)

    def __init__(self, config):
        super().__init__(config)
        self.token_layer = nn.Linear(config.token_channels, config.width)
        self.word_layer = nn.Linear(config.word_channels, config.width)

    def forward(self, batch):
        weights = batch.presence * batch.frame_mask[:, None]  # (B or 1, N, T)
        tokens = torch.einsum("bnt,bntc->bnc", weights, batch.tokens) / weights.sum(2, keepdim=True).clamp(min=1)
        words = (batch.words * batch.word_mask[..., None]).sum(1) / batch.word_mask.sum(1, keepdim=True)
        return (self.token_layer(tokens) * self.word_layer(words)[:, None]).sum(-1)
