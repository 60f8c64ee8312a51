"""Text encoders and the cue tagger. To add an encoder, write a file and a line in TEXT_ENCODERS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rvos_cache import settings
from rvos_cache.plugins import resolve
from rvos_cache.types import Words

TEXT_ENCODERS = {
    "hashed": "rvos_cache.text.hashed:HashedEncoder",
    "roberta": "rvos_cache.text.roberta:RobertaEncoder",
}


class TextEncoder(Protocol):
    """Sentences to word vectors. Settings: its frozen settings model; channels: D of its words."""

    Settings: type[settings.Settings]
    channels: int

    def __init__(self, settings: Any) -> None: ...

    def weight_hashes(self) -> dict[str, str]:
        """Name of each loaded checkpoint -> digest of its weights, and `cues.tagger_version` where it tags by that tagger."""

    def encode(self, texts: Sequence[str]) -> list[Words]:
        """One Words per sentence: vectors (L, D), spans and part-of-speech tags."""


def encoder_class(name: str) -> type[TextEncoder]:
    """The text encoder `name` (a name in TEXT_ENCODERS or "package.module:Class")."""
    found: type[TextEncoder] = resolve(TEXT_ENCODERS, name, "text encoder")
    return found
