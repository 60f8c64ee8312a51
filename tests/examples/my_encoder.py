"""Words as counts of their letters: 26 channels, no weights."""

from string import ascii_lowercase

import numpy as np

from rvos_cache import TextEncoder, Words
from rvos_cache.text.cues import DEFAULT_TAGGER, split_words, tag_words, tagger_version


class MyEncoder(TextEncoder):
    channels = 26

    def weight_hashes(self):
        return tagger_version(DEFAULT_TAGGER)

    def encode(self, texts):
        return [self.encode_one(text) for text in texts]

    def encode_one(self, text):
        words, starts, ends = zip(*split_words(text), strict=True)
        vectors = np.array([[word.lower().count(letter) for letter in ascii_lowercase] for word in words], np.float32)  # (L, D)
        return Words(vectors, np.array([starts, ends], np.int32).T, tags=tuple(tag_words(list(words))))
