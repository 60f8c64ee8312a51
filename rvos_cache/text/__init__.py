"""Text encoders and the cue tagger. To add an encoder, write a file and a line in TEXT_ENCODERS."""

from __future__ import annotations

from rvos_cache.plugins import resolve
from rvos_cache.text.base import TextEncoder, check_encoder_class, create_encoder, make_words

__all__ = ["TEXT_ENCODERS", "TextEncoder", "encoder_class", "make_words", "open_encoder"]

TEXT_ENCODERS = {
    "beit3": "rvos_cache.text.beit3.encoder:Beit3Encoder",
    "clip": "rvos_cache.text.clip:ClipEncoder",
    "hashed": "rvos_cache.text.hashed:HashedEncoder",
    "minilm": "rvos_cache.text.minilm:MinilmEncoder",
    "roberta": "rvos_cache.text.roberta:RobertaEncoder",
}
"""Name of a text encoder -> its class."""


def encoder_class(name: str) -> type[TextEncoder]:
    """Return the class of the text encoder `name`, a name in TEXT_ENCODERS or "my_module:MyEncoder" of the user's own.

    Raises InputError: if there is no such class, or it breaks the contract of `TextEncoder`.
    """
    cls: type[TextEncoder] = resolve(TEXT_ENCODERS, name, "text encoder", TextEncoder)
    check_encoder_class(cls, f"text encoder {name}")
    return cls


def open_encoder(name: str, settings: object) -> TextEncoder:
    """Return the text encoder `name` with its weights. Raises InputError like `encoder_class`, and if it cannot be created."""
    return create_encoder(encoder_class(name), settings, f"text encoder {name}", is_custom=name not in TEXT_ENCODERS)
