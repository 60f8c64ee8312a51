"""Any Hugging Face encoder by name or folder, frozen: SOLA reads `sentence-transformers/all-roberta-large-v1`."""

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
from rvos_cache.text.normalise import Normalise, normalised, written_spans
from rvos_cache.types import Words


class RobertaSettings(Settings):
    """Settings of the `roberta` encoder."""

    checkpoint: str = "sentence-transformers/all-roberta-large-v1"
    """A hub name or a folder with tokenizer, config and safetensors weights."""
    batch_size: int = Field(default=32, ge=1)
    """Sentences that are encoded together."""
    tagger: Tagger = DEFAULT_TAGGER
    """Part-of-speech tagger."""
    normalise: Normalise = "raw"
    """raw: the sentence as written (SOLA's released code); lower: lower case and single blanks (MeViS's LMPM, DsHmp)."""


class RobertaEncoder(TextEncoder):
    """Words are the last hidden state, special tokens included."""

    Settings: type[Settings] = RobertaSettings

    def __init__(self, settings: RobertaSettings) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.settings = settings
        self.tokenizer: Any = load_processor(AutoTokenizer, settings.checkpoint, "text checkpoint", use_fast=True)
        if not self.tokenizer.is_fast:
            raise InputError(f"text checkpoint {settings.checkpoint!r}: its tokenizer gives no character spans; use a fast one")
        self.model: Any = load_frozen(AutoModel, settings.checkpoint, "text checkpoint", unread=("pooler.",))
        self.device = device()
        self.channels = int(self.model.config.hidden_size)
        # RoBERTa's positions start behind the padding index, so two of them are not there for tokens.
        room = int(self.model.config.max_position_embeddings) - 2
        self.longest = min(room, self.tokenizer.model_max_length)

    def weight_hashes(self) -> dict[str, str]:
        """Digest of the weights as loaded, so that a name and a folder with the same weights agree; and what tags."""
        return {**weights_digest(self.model, self.settings.checkpoint), **tagger_version(self.settings.tagger)}

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """One Words per sentence, vectors float16 (L, D). A sentence past the model's length is cut, with a warning."""
        import torch

        found: list[Words] = []
        for start in range(0, len(texts), self.settings.batch_size):
            part = [normalised(text, self.settings.normalise) for text in texts[start : start + self.settings.batch_size]]
            given = self.tokenizer(
                [text for text, _ in part],
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_offsets_mapping=True,
                return_tensors="pt",
            )
            spans = given.pop("offset_mapping").numpy().astype(np.int32)
            with torch.inference_mode():
                hidden = self.model(**given.to(self.device)).last_hidden_state.cpu().numpy()
            masks = given["attention_mask"].cpu().numpy().astype(bool)
            for (text, places), row, where, real in zip(part, hidden, spans, masks):
                if real.sum() >= self.longest and where[real][:, 1].max() < len(text.rstrip()):
                    warnings.warn(f"cut to {self.longest} tokens: {text[:60]!r}...", stacklevel=2)
                tags = align_tags(text, where[real], self.settings.tagger)
                found.append(Words(row[real].astype(np.float16), written_spans(where[real], places), tags))
        return found
