"""Word vectors without a download: hashed character n-grams, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rvos_cache.settings import Settings
from rvos_cache.text.base import TextEncoder
from rvos_cache.text.cues import align_tags, tagger_version
from rvos_cache.text.normalise import Normalise, normalise_text, original_spans, split_words
from rvos_cache.types import Words


class HashedSettings(Settings):
    """Settings of the `hashed` encoder."""

    channels: int = Field(default=256, ge=16, multiple_of=8)
    """D, the length of a word's vector. A quarter encodes the position, the rest the word."""
    loudness: float = Field(default=1.6, gt=0)
    """Root mean square of the word's channels; the position's sines and cosines are at most 1."""
    pairs: float = Field(default=0.4, ge=0)
    """Weight of the pair of the previous word and the word, relative to the word: it tells "then left" from "first left"."""
    seed: int = 0
    """Seed of the random vectors."""
    shortest: int = Field(default=3, ge=1)
    """Length of the shortest character n-grams."""
    longest: int = Field(default=5, ge=1)
    """Length of the longest character n-grams; the whole word is always used too."""
    tagger: Literal["hanta", "spacy"] = "hanta"
    """The part-of-speech tagger."""
    normalise: Normalise = "plain"
    """plain: the words alone, without punctuation; raw, lower: punctuation marks are words too. The vectors always ignore case
    and blanks."""


class HashedEncoder(TextEncoder):
    """Each word is the normalised sum of fixed random vectors of the whole word (weight 1), of its n-grams (weight 1 together)
    and of the pair of the previous word and the word (`pairs`).

    Words that share letters have similar vectors, equal words nearly equal ones, and every script works. The last quarter of the
    channels are sines and cosines of the word's position. The first token is a start token with the span (0, 0).

    Source: the features of fastText, Joulin et al., "Bag of Tricks for Efficient Text Classification", 2017, section 2.1.
    """

    Settings = HashedSettings

    def __init__(self, settings: HashedSettings) -> None:
        super().__init__(settings)
        self.channels = settings.channels
        self.position_channels = settings.channels // 4 // 2 * 2
        self._gram = lru_cache(maxsize=200_000)(self._random)
        self._word = lru_cache(maxsize=50_000)(self._vector)
        self._words = lru_cache(maxsize=10_000)(self._encode)

    def weight_hashes(self) -> dict[str, str]:
        """Return the version of the tagger; there is no checkpoint."""
        return tagger_version(self.settings.tagger)

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """Return one Words per sentence, vectors float16 (L, D), L = words + 1."""
        return [self._words(text) for text in texts]

    def _encode(self, original: str) -> Words:
        text, origins = normalise_text(original, self.settings.normalise)
        words = split_words(text)
        keys = ["\x02", *(word.lower() for word, _, _ in words)]
        vectors = np.stack([self._word(previous, word) for previous, word in zip(["", *keys], keys)])
        position = np.arange(len(vectors))[:, None] / 50.0 ** np.linspace(0, 1, self.position_channels // 2)[None]
        code = np.concatenate([np.sin(position), np.cos(position)], axis=1)
        spans = original_spans(np.array([(0, 0), *((start, end) for _, start, end in words)], np.int32), origins)
        tags = align_tags(original, spans, self.settings.tagger)
        return Words(np.concatenate([vectors, code], axis=1).astype(np.float16), spans, tags)

    def _vector(self, previous: str, word: str) -> NDArray[np.float64]:
        whole = self._gram(word)
        delimited = f"<{word}>"
        lengths = range(self.settings.shortest, self.settings.longest + 1)
        grams = [delimited[i : i + n] for n in lengths for i in range(len(delimited) - n + 1)][:200]
        vector = whole + (np.mean([self._gram("#" + g) for g in grams], axis=0) * np.sqrt(len(grams)) if grams else 0.0)
        vector = vector / np.linalg.norm(vector)
        if self.settings.pairs:
            pair = self._gram(f"{previous}\0{word}")
            vector = vector + self.settings.pairs * pair / np.linalg.norm(pair)
        # All words have one norm, because selectors do not normalise before their first dot product with them.
        return np.asarray(vector / np.linalg.norm(vector) * np.sqrt(len(vector)) * self.settings.loudness, np.float64)

    def _random(self, key: str) -> NDArray[np.float64]:
        seed = hashlib.blake2b(f"{self.settings.seed}\0{key}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))
        return generator.standard_normal(self.channels - self.position_channels)
