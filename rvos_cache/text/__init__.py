"""Text encoders and the cue tagger. To add an encoder, write a file and a line in TEXT_ENCODERS."""

from __future__ import annotations

import warnings

from rvos_cache.plugins import resolve
from rvos_cache.text.base import TextEncoder, check_encoder_class, create_encoder, make_words

__all__ = ["TEXT_ENCODERS", "TextEncoder", "default_encoder", "encoder_class", "make_words", "open_encoder"]

TEXT_ENCODERS = {
    "hashed": "rvos_cache.text.hashed:HashedEncoder",
    "minilm": "rvos_cache.text.minilm:MinilmEncoder",
    "roberta": "rvos_cache.text.roberta:RobertaEncoder",
}
"""Name of a text encoder -> its class."""


def default_encoder() -> str:
    """Return the encoder that is used where none is named: "minilm" where its package is installed, else "hashed".

    Warns, in one line, for "hashed". Caches of the two have different names and cards, so they are never mixed.
    """
    from rvos_cache.text.minilm import INSTALL, PACKAGE, package_archive

    if package_archive() is not None:
        return "minilm"
    warnings.warn(
        f"text encoder hashed: without {PACKAGE} words have no meaning beyond their letters; {INSTALL}, or give --encoder",
        stacklevel=2,
    )
    return "hashed"


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
