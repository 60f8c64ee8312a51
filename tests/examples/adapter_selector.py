"""Reads the sentences with a frozen RoBERTa, in whose last layer a low-rank adapter is trained."""

from pydantic import Field
from torch import nn
from transformers import AutoModel, AutoTokenizer

from rvos_cache.pretrained import load_frozen, load_processor, weights_digest
from rvos_select import FrozenPart, Selector, SelectorConfig


class Adapter(nn.Module):
    def __init__(self, layer, rank):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class AdapterConfig(SelectorConfig):
    checkpoint: str = "FacebookAI/roberta-base"
    """A hub name or a folder."""
    sentence_channels: int = Field(768, ge=1)
    """Channels of that checkpoint."""
    rank: int = Field(8, ge=1)
    """Rank of the adapter."""


class AdapterSelector(Selector):
    Config = AdapterConfig
    encodes_text = True

    def __init__(self, config):
        super().__init__(config)
        self.tokenizer = load_processor(AutoTokenizer, config.checkpoint, "text checkpoint")
        self.sentence_layer = nn.Linear(config.sentence_channels, config.token_channels)

    def frozen_parts(self, cards):
        def load(checkpoint):
            return load_frozen(AutoModel, checkpoint, "text checkpoint", unread=("pooler.",))

        def digest(model):
            return weights_digest(model, self.config.checkpoint).popitem()[1]

        return [FrozenPart("text", self.config.checkpoint, load, digest)]

    def bound(self, cards):
        output = self.frozen["text"].encoder.layer[-1].output
        output.dense = Adapter(output.dense, self.config.rank)

    def forward(self, batch):
        words = self.tokenizer(list(batch.sentences), padding=True, return_tensors="pt").to(batch.tokens.device)
        sentences = self.frozen["text"](**words).last_hidden_state[:, 0]  # (B, D)
        frames = batch.frame_mask[:, None, :, None]
        tokens = (batch.tokens * frames).sum(2) / frames.sum(2)  # (A, N, C)
        return (tokens * self.sentence_layer(sentences)[:, None]).sum(-1)
