"""Sentences that are longer than an encoder reads: one warning each, or one for all sentences of an extraction."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class CutSentence(UserWarning):
    """A sentence that an encoder reads the beginning of."""


def warn_of_cut(longest: int, text: str, stacklevel: int) -> None:
    """Warn that `text` was cut to `longest` tokens."""
    warnings.warn(f"cut to {longest} tokens: {text[:60]!r}...", CutSentence, stacklevel + 1)


@contextmanager
def cuts_counted() -> Iterator[None]:
    """In the block warnings of sentences that were cut are only counted; at its end there is one for all of them."""
    show, first, count = warnings.showwarning, "", 0

    def show_others(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        nonlocal first, count
        if issubclass(category, CutSentence):
            first, count = first or str(message), count + 1
        else:
            show(message, category, *where, **more)

    warnings.showwarning = show_others
    try:
        yield
    finally:
        warnings.showwarning = show
        if count:
            warnings.warn(f"{count} different sentences were cut, the first {first}" if count > 1 else first, stacklevel=3)
