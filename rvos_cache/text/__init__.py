"""Text encoders and the cue tagger. To add an encoder, write a file and a line in TEXT_ENCODERS."""

from __future__ import annotations

from rvos_cache.errors import InputError
from rvos_cache.plugins import resolve
from rvos_cache.text.base import TextEncoder, make_words

__all__ = ["TEXT_ENCODERS", "TextEncoder", "encoder_class", "make_words"]

TEXT_ENCODERS = {
    "hashed": "rvos_cache.text.hashed:HashedEncoder",
    "roberta": "rvos_cache.text.roberta:RobertaEncoder",
}
"""Name of a text encoder -> its class."""


def encoder_class(name: str) -> type[TextEncoder]:
    """Return the class of the text encoder `name`, a name in TEXT_ENCODERS or "package.module:Class".

    Raises InputError: if there is no such class, it is not a subclass of TextEncoder, or it lacks a required method.
    """
    cls = resolve(TEXT_ENCODERS, name, "text encoder")
    if not (isinstance(cls, type) and issubclass(cls, TextEncoder)):
        raise InputError(f"text encoder {name!r}: expected a subclass of rvos_cache.text.TextEncoder, got {cls!r:.60}")
    lacking = sorted(cls.__abstractmethods__)
    if lacking:
        raise InputError(
            f"text encoder {name!r}: the class does not define {', '.join(lacking)}; see rvos_cache.text.TextEncoder"
        )
    return cls
