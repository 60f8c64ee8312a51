"""The text encoder `beit3`: BEiT-3's words without a frame, and their ids, for selectors that run BEiT-3 on frames themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.pretrained import weights_digest
from rvos_cache.settings import Settings
from rvos_cache.system.device import device
from rvos_cache.text.base import TextEncoder
from rvos_cache.text.beit3.checkpoint import check_tokenizer, load, load_tokenizer
from rvos_cache.text.beit3.tokenizer import PAD, Beit3Tokenizer
from rvos_cache.text.cues import DEFAULT_TAGGER, Tagger, align_tags, tagger_version
from rvos_cache.text.cut import warn_of_cut
from rvos_cache.text.normalise import Normalise, normalise_text, original_spans
from rvos_cache.types import Words


class Beit3Settings(Settings):
    """Settings of the `beit3` encoder."""

    checkpoint: str
    """A folder that `rvos-cache convert-beit3` wrote."""
    longest: int = Field(default=40, ge=3)
    """Tokens of a sentence, the two special ones included; of a longer sentence the first ones. Source: 40 MeViS's LMPM and DsHmp."""
    batch_size: int = Field(default=32, ge=1)
    """Sentences per forward pass."""
    tagger: Tagger = DEFAULT_TAGGER
    """The part-of-speech tagger."""
    normalise: Normalise = "lower"
    """lower: lower case and single blanks; raw: the sentence as written; plain: the words alone, without case and punctuation.
    Source: lower MeViS's LMPM and DsHmp, raw BEiT-3's released code."""


class Beit3Encoder(TextEncoder):
    """Every token of a sentence, special ones included, after the experts of words alone."""

    Settings = Beit3Settings

    def __init__(self, settings: Beit3Settings) -> None:
        """Load encoder and tokenizer. Raises InputError: if one cannot be loaded, or `longest` is more than the encoder takes."""
        super().__init__(settings)
        self.tokenizer = load_tokenizer(settings.checkpoint)
        self.model = load(settings.checkpoint)
        sizes = self.model.sizes
        check_tokenizer(self.tokenizer, sizes.vocabulary)
        if settings.longest > sizes.longest:
            raise InputError(f"longest {settings.longest}, this BEiT-3 takes at most {sizes.longest} tokens; --set longest=40")
        self.channels = sizes.width

    def weight_hashes(self) -> dict[str, str]:
        """Return the digest of the loaded weights, the same wherever the folder is, and the version of the tagger."""
        return {**weights_digest(self.model, self.settings.checkpoint), **tagger_version(self.settings.tagger)}

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """Return one Words per sentence, vectors float16 (L, D) and ids (L,). Cuts a sentence at `longest`, with a warning."""
        size = self.settings.batch_size
        return [words for start in range(0, len(texts), size) for words in self._encode_batch(texts[start : start + size])]

    def _encode_batch(self, texts: Sequence[str]) -> list[Words]:
        tokens = tokenise(self.tokenizer, texts, self.settings)
        padded, real = pad_ids([ids for ids, _, _ in tokens])
        with torch.inference_mode():
            hidden = self.model(None, padded.to(device()), real.to(device())).words.cpu().numpy()
        return [
            Words(vectors[: len(ids)].astype(np.float16), spans, tags, ids) for vectors, (ids, spans, tags) in zip(hidden, tokens)
        ]


def tokenise(
    tokenizer: Beit3Tokenizer, texts: Sequence[str], settings: Beit3Settings
) -> list[tuple[NDArray[np.int32], NDArray[np.int32], tuple[str, ...]]]:
    """Ids (L,), spans (L, 2) in the sentence as written, and tags (L,) of each sentence. Cuts one at `longest`, with a warning."""
    batch = [normalise_text(text, settings.normalise) for text in texts]
    out = []
    for original, (text, origins), (ids, spans) in zip(texts, batch, tokenizer([text for text, _ in batch], settings.longest)):
        if len(ids) == settings.longest and spans[:, 1].max() < len(text.rstrip()):
            warn_of_cut(settings.longest, original, stacklevel=4)
        spans = original_spans(spans, origins)
        out.append((ids, spans, align_tags(original, spans, settings.tagger)))
    return out


def pad_ids(ids: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Ids int64 (B, L) with PAD behind the shorter sentences, and which are real, bool (B, L)."""
    padded = torch.full((len(ids), max(map(len, ids))), PAD)
    real = torch.zeros(padded.shape, dtype=torch.bool)
    for row, own in enumerate(ids):
        padded[row, : len(own)] = torch.from_numpy(own)
        real[row, : len(own)] = True
    return padded, real
