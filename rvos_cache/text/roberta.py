"""Any Hugging Face text encoder by name or folder, frozen. SOLA uses `sentence-transformers/all-roberta-large-v1`."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from rvos_cache.text.cues import DEFAULT_TAGGER, Tagger
from rvos_cache.text.normalise import Normalise
from rvos_cache.text.transformer import TransformerEncoder, TransformerSettings
from rvos_cache.types import Words


class RobertaSettings(TransformerSettings):
    """Settings of the `roberta` encoder."""

    checkpoint: str = "sentence-transformers/all-roberta-large-v1"
    """A hub name, or a folder with tokenizer, config and safetensors weights. Source: SOLA's released code."""
    batch_size: int = Field(default=32, ge=1)
    """Sentences per forward pass."""
    tagger: Tagger = DEFAULT_TAGGER
    """The part-of-speech tagger."""
    normalise: Normalise = "raw"
    """raw: the sentence as written; lower: lower case and single blanks; plain: the words alone, without case and punctuation.
    Source: raw SOLA's released code, lower MeViS's LMPM and DsHmp."""


class RobertaEncoder(TransformerEncoder):
    """SOLA's words, in batches."""

    Settings = RobertaSettings

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """Return one Words per sentence, vectors float16 (L, D). Truncates a sentence at the model's maximum, with a warning."""
        size = self.settings.batch_size
        return [words for start in range(0, len(texts), size) for words in self.encode_batch(texts[start : start + size])]
