"""The base class of every text encoder: `channels` and `encode` to write, and a default for everything else.

A text encoder of your own is one file, used as `--encoder my_module:MyEncoder`:

    class MyEncoder(TextEncoder):
        channels = 300

        def encode(self, texts):
            return [make_words([vector(word) for word in text.split()]) for text in texts]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rvos_cache import settings
from rvos_cache.errors import InputError
from rvos_cache.plugins import check_channels, check_overridden, check_settings_model, check_signatures, reporting
from rvos_cache.types import Words


class TextEncoder(ABC):
    """Sentences to word vectors. Required: `channels`, in the class or set by `__init__`, and `encode`."""

    Settings: type[settings.Settings] = settings.Settings
    """The model of the encoder's settings. Default: no settings."""
    channels: int
    """D, the length of a word's vector."""

    def __init__(self, settings: Any) -> None:
        """settings: an instance of `Settings`."""
        self.settings = settings

    def weight_hashes(self) -> dict[str, str]:
        """Return the name of each loaded checkpoint -> digest of its weights; default: none.

        An encoder that tags with `cues.align_tags` adds `cues.tagger_version`. A cache is bound to these values.
        """
        return {}

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Words]:
        """Return one `Words` per sentence, vectors (L, D); `make_words` makes one from vectors alone."""

    def encode_checked(self, texts: Sequence[str]) -> list[Words]:
        """Return `encode(texts)`. Raises InputError: if it is not one `Words` of `channels` channels per sentence."""
        words = self.encode(texts)
        location, channels = f"text encoder {type(self).__name__}", self.channels
        if len(words) != len(texts):
            raise InputError(f"{location}: expected words of {len(texts)} sentences, got {len(words)}; return one per sentence")
        for text, one in zip(texts, words):
            if not isinstance(one, Words):
                raise InputError(f"{location}: expected Words, got {type(one).__name__} for {text!r:.60}; see text.make_words")
            if one.vectors.shape[1] != channels:
                shape = one.vectors.shape
                raise InputError(f"{location}: expected vectors (L, {channels}), got {shape} for {text!r:.60}; see `channels`")
        return words


def check_encoder_class(cls: type[TextEncoder], title: str) -> None:
    """Check what can be checked without creating an encoder. Raises InputError, starting with `title`, for the first fault."""
    check_settings_model(cls, settings.Settings, title)
    check_overridden(cls, TextEncoder, ["encode"], title)
    check_signatures(cls, TextEncoder, ["encode", "weight_hashes"], title)
    check_channels(cls, title, complete=cls.__init__ is TextEncoder.__init__)


def create_encoder(cls: type[TextEncoder], settings: Any, title: str, is_custom: bool) -> TextEncoder:
    """`cls(settings)`, checked. Raises InputError if it cannot be created; is_custom: any exception is an InputError."""
    with reporting(title, "cannot be created", is_custom):
        encoder = cls(settings)
    check_channels(encoder, title, complete=True)
    return encoder


def make_words(
    vectors: ArrayLike, spans: ArrayLike | None = None, tags: Sequence[str] | None = None, ids: ArrayLike | None = None
) -> Words:
    """Return Words of vectors (L, D), an array, a tensor or a list of L vectors, stored as float16.

    spans: (L, 2), the characters [start, end) of each word in the sentence; default: unknown, (0, 0). tags: L part-of-speech
    tags, as `cues.align_tags` gives them for spans; default: "", which is no cue, so that selectors with motion and static
    words see neither. ids: (L,), the number of each word in the encoder's vocabulary, for selectors that embed words themselves;
    default: none. Raises InputError: if the shapes disagree, there is no word, or a value is not finite as float16.
    """
    with np.errstate(over="ignore"):
        array: NDArray[np.float16] = np.asarray(vectors).astype(np.float16)
    if array.ndim != 2 or not len(array):
        raise InputError(f"words: expected vectors (L, D) with L of 1 or more, got {array.shape}; give one vector per word")
    if not np.isfinite(array).all():
        raise InputError("words: a vector has a value that is not finite as float16; scale the vectors to below 65504")
    ranges = np.zeros((len(array), 2), np.int32) if spans is None else np.asarray(spans, np.int32)
    names = ("",) * len(array) if tags is None else tuple(tags)
    if ranges.shape != (len(array), 2) or len(names) != len(array):
        raise InputError(f"words: {len(array)} vectors, spans {ranges.shape} and {len(names)} tags; give one of each per word")
    numbers = None if ids is None else np.asarray(ids, np.int32)
    if numbers is not None and numbers.shape != (len(array),):
        raise InputError(f"words: {len(array)} vectors and ids {numbers.shape}; give one id per word")
    return Words(array, ranges, names, numbers)
