"""The base class of text encoders, and the checks of an encoder class before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rvos_cache import settings
from rvos_cache.plugins import check_channels, check_overridden, check_settings_model, check_signatures, reporting
from rvos_cache.types import Words


class TextEncoder:
    """Sentences to word vectors. A subclass sets `channels` and overrides `encode`; everything else has a default.

    `channels` may be set in the class, or in `__init__` if it depends on the settings or the weights.
    """

    Settings: type[settings.Settings] = settings.Settings
    """Its settings model; by default there are no settings."""
    channels: int
    """D of its word vectors."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def weight_hashes(self) -> dict[str, str]:
        """Name of each loaded checkpoint -> digest of its weights, and `cues.tagger_version` if it uses that tagger."""
        return {}

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """One Words per sentence: vectors (L, D), spans and part-of-speech tags."""
        raise NotImplementedError


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
