"""What the encoders of Hugging Face checkpoints share: a frozen model whose last hidden state gives the vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rvos_cache.errors import InputError
from rvos_cache.pretrained import load_frozen, load_processor, weights_digest
from rvos_cache.settings import Settings
from rvos_cache.system.device import device
from rvos_cache.text.base import TextEncoder
from rvos_cache.text.cues import DEFAULT_TAGGER, Tagger, align_tags, tagger_version
from rvos_cache.text.cut import warn_of_cut
from rvos_cache.text.normalise import Normalise, normalise_text, original_spans
from rvos_cache.types import Words


class TransformerSettings(Settings):
    """Settings of every encoder of a Hugging Face checkpoint."""

    checkpoint: str
    """A hub name, or a folder with tokenizer, config and safetensors weights."""
    tagger: Tagger = DEFAULT_TAGGER
    """The part-of-speech tagger."""
    normalise: Normalise = "raw"
    """raw: the sentence as written; lower: lower case and single blanks; plain: the words alone, without case and punctuation."""


class TransformerEncoder(TextEncoder):
    """The vectors are the last hidden state, special tokens included: their mean is the sentence vector of Sentence-BERT.

    Source: mean pooling, Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, section 3.
    """

    def __init__(self, settings: TransformerSettings, source: str | None = None) -> None:
        """source: the folder to load from, if it is not found by `settings.checkpoint`."""
        from transformers import AutoModel, AutoTokenizer

        super().__init__(settings)
        source = source or settings.checkpoint
        self.tokenizer: Any = load_processor(AutoTokenizer, source, "text checkpoint", use_fast=True)
        if not self.tokenizer.is_fast:
            raise InputError(f"text checkpoint {source!r}: its tokenizer gives no character spans; use a fast one")
        self.model: Any = load_frozen(AutoModel, source, "text checkpoint", unread=("pooler.",))
        self.device = device()
        self.channels = int(self.model.config.hidden_size)
        # RoBERTa's positions start after the padding index, so tokens cannot use two of them.
        positions = int(self.model.config.max_position_embeddings) - 2
        self.max_length = min(positions, self.tokenizer.model_max_length)

    def weight_hashes(self) -> dict[str, str]:
        """Return the digest of the loaded weights, the same for a hub name and a folder, and the version of the tagger."""
        return {**weights_digest(self.model, self.settings.checkpoint), **tagger_version(self.settings.tagger)}

    def vectors(self, inputs: Any) -> Any:
        """Return the vectors of the tokens, a tensor (B, L, D). inputs: what the tokenizer returned."""
        return self.model(**inputs).last_hidden_state

    def encode_batch(self, texts: Sequence[str]) -> list[Words]:
        """Return one Words per sentence, float16 (L, D), in one forward pass. Truncates a sentence at the maximum, with a warning."""
        import torch

        batch = [normalise_text(text, self.settings.normalise) for text in texts]
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
            hidden = self.vectors(inputs.to(self.device)).cpu().numpy()
        masks = inputs["attention_mask"].cpu().numpy().astype(bool)
        words = []
        for original, (text, origins), vectors, padded_spans, mask in zip(texts, batch, hidden, offsets, masks):
            if mask.sum() >= self.max_length and padded_spans[mask][:, 1].max() < len(text.rstrip()):
                warn_of_cut(self.max_length, text, stacklevel=2)
            spans = original_spans(padded_spans[mask], origins)
            words.append(Words(vectors[mask].astype(np.float16), spans, align_tags(original, spans, self.settings.tagger)))
        return words
