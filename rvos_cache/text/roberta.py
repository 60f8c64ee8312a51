"""Any Hugging Face text encoder by name or folder, frozen. SOLA uses `sentence-transformers/all-roberta-large-v1`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from rvos_cache.errors import InputError
from rvos_cache.pretrained import device, load_frozen, load_processor, weights_digest
from rvos_cache.settings import Settings
from rvos_cache.text.base import TextEncoder
from rvos_cache.text.cues import DEFAULT_TAGGER, Tagger, align_tags, tagger_version
from rvos_cache.text.normalise import Normalise, normalise_text, original_spans
from rvos_cache.types import Words


class RobertaSettings(Settings):
    """Settings of the `roberta` encoder."""

    checkpoint: str = "sentence-transformers/all-roberta-large-v1"
    """A hub name, or a folder with tokenizer, config and safetensors weights. Source: SOLA's released code."""
    batch_size: int = Field(default=32, ge=1)
    """Sentences per forward pass."""
    tagger: Tagger = DEFAULT_TAGGER
    """The part-of-speech tagger."""
    normalise: Normalise = "raw"
    """raw: the sentence as written; lower: lower case and single blanks. Source: raw SOLA's released code, lower MeViS's LMPM
    and DsHmp."""


class RobertaEncoder(TextEncoder):
    """The vectors are the last hidden state, special tokens included."""

    Settings = RobertaSettings

    def __init__(self, settings: RobertaSettings) -> None:
        from transformers import AutoModel, AutoTokenizer

        super().__init__(settings)
        self.tokenizer: Any = load_processor(AutoTokenizer, settings.checkpoint, "text checkpoint", use_fast=True)
        if not self.tokenizer.is_fast:
            raise InputError(f"text checkpoint {settings.checkpoint!r}: its tokenizer gives no character spans; use a fast one")
        self.model: Any = load_frozen(AutoModel, settings.checkpoint, "text checkpoint", unread=("pooler.",))
        self.device = device()
        self.channels = int(self.model.config.hidden_size)
        # RoBERTa's positions start after the padding index, so tokens cannot use two of them.
        positions = int(self.model.config.max_position_embeddings) - 2
        self.max_length = min(positions, self.tokenizer.model_max_length)

    def weight_hashes(self) -> dict[str, str]:
        """Return the digest of the loaded weights, the same for a hub name and a folder, and the version of the tagger."""
        return {**weights_digest(self.model, self.settings.checkpoint), **tagger_version(self.settings.tagger)}

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """Return one Words per sentence, vectors float16 (L, D). Truncates a sentence at the model's maximum, with a warning."""
        import torch

        words: list[Words] = []
        for start in range(0, len(texts), self.settings.batch_size):
            batch = [normalise_text(text, self.settings.normalise) for text in texts[start : start + self.settings.batch_size]]
            inputs = self.tokenizer(
                [text for text, _ in batch],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_offsets_mapping=True,
                return_tensors="pt",
            )
            offsets = inputs.pop("offset_mapping").numpy().astype(np.int32)
            with torch.inference_mode():
                hidden = self.model(**inputs.to(self.device)).last_hidden_state.cpu().numpy()
            masks = inputs["attention_mask"].cpu().numpy().astype(bool)
            for (text, origins), vectors, padded_spans, mask in zip(batch, hidden, offsets, masks):
                spans = padded_spans[mask]
                if mask.sum() >= self.max_length and spans[:, 1].max() < len(text.rstrip()):
                    warnings.warn(f"cut to {self.max_length} tokens: {text[:60]!r}...", stacklevel=2)
                tags = align_tags(text, spans, self.settings.tagger)
                words.append(Words(vectors[mask].astype(np.float16), original_spans(spans, origins), tags))
        return words
