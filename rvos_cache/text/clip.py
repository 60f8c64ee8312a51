"""The text tower of a frozen CLIP: words with context, and the sentence vector as the last word.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2.4; as words in
SSA's released `backbone/clip.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rvos_cache.clip.cleaning import repair_text
from rvos_cache.clip.towers import encode_tokens, load_text_tower, load_tokenizer, tokenize, tower_digest
from rvos_cache.settings import Settings
from rvos_cache.text.base import TextEncoder
from rvos_cache.text.cues import DEFAULT_TAGGER, Tagger, align_tags, tagger_version
from rvos_cache.text.cut import warn_of_cut
from rvos_cache.text.normalise import normalise_text, original_spans
from rvos_cache.types import Words


class ClipSettings(Settings):
    """Settings of the `clip` encoder."""

    checkpoint: str
    """A folder that `rvos-cache convert-clip` wrote, or a folder or hub name of a CLIP of transformers. SSA's is the former, of
    open_clip's `convnext_large_d_320`."""
    batch_size: int = Field(default=32, ge=1)
    """Sentences per forward pass."""
    tagger: Tagger = DEFAULT_TAGGER
    """The part-of-speech tagger."""


class ClipEncoder(TextEncoder):
    """Every token of a sentence, SOT and EOT included, projected to the space that images and sentences share.

    The last word (EOT) is the sentence vector; no vector is normalised. The sentence is cleaned as open_clip does: lower case,
    single blanks, no entities of HTML, and repaired by ftfy if that is installed.
    """

    Settings = ClipSettings

    def __init__(self, settings: ClipSettings) -> None:
        """Load the tokenizer and the text tower. Raises InputError: if one cannot be loaded, or the checkpoint is no CLIP."""
        super().__init__(settings)
        self.tokenizer = load_tokenizer(settings.checkpoint)
        self.model = load_text_tower(settings.checkpoint)
        self.channels = int(self.model.config.projection_dim)
        self.max_length = int(self.model.config.max_position_embeddings)

    def weight_hashes(self) -> dict[str, str]:
        """Return the digest of the text tower, the same for a hub name and a folder of one name, and the version of the tagger."""
        return {**tower_digest(self.model, self.settings.checkpoint), **tagger_version(self.settings.tagger)}

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """Return one Words per sentence, vectors float16 (L, D) with L of at most 77.

        A longer sentence is cut with a warning; its last kept token becomes EOT, as in open_clip.
        """
        size = self.settings.batch_size
        return [words for start in range(0, len(texts), size) for words in self._encode_batch(texts[start : start + size])]

    def _encode_batch(self, texts: Sequence[str]) -> list[Words]:
        tokens = tokenize(self.tokenizer, texts, self.max_length)
        hidden = encode_tokens(self.model, tokens)[0].cpu().numpy()
        words = []
        for text, vectors, length, cleaned_spans, cut in zip(texts, hidden, tokens.lengths, tokens.spans, tokens.cut):
            if cut:
                warn_of_cut(self.max_length, text, stacklevel=3)
            spans = original_spans(cleaned_spans, cleaned_origins(text))
            tags = align_tags(text, spans, self.settings.tagger)
            words.append(Words(vectors[:length].astype(np.float16), spans, tags))
        return words


def cleaned_origins(text: str) -> NDArray[np.int32]:
    """Return the range [start, end) in `text` of each of the M characters of `clean_text(text)`, int32 (M, 2)."""
    repaired = repair_text(text)
    _, origins = normalise_text(repaired, "lower")
    return origins if repaired == text else original_spans(origins, _changed_origins(text, repaired))


def _changed_origins(text: str, changed: str) -> NDArray[np.int32]:
    """The range in `text` of each character of `changed`: a replaced part has the whole range of what it replaces, and what was
    removed belongs to the character before it ("&amp;" gives "&", of which "amp;" is removed)."""
    ranges = np.zeros((len(changed), 2), np.int32)
    for kind, a, b, start, end in difflib.SequenceMatcher(a=text, b=changed, autojunk=False).get_opcodes():
        if kind == "equal":
            ranges[start:end, 0] = np.arange(a, b)
            ranges[start:end, 1] = np.arange(a, b) + 1
        elif kind == "delete":
            ranges[start - 1 : start, 1] = b
        else:
            ranges[start:end] = a, b
    return ranges
