"""The cleaning of a sentence before CLIP's tokenizer, as open_clip's `tokenizer.py` does it (its `clean="lower"`)."""

from __future__ import annotations

import html
from functools import lru_cache
from typing import Any

from rvos_cache.errors import warn_once


def repair_text(text: str) -> str:
    """Return `text` with its characters repaired by ftfy, and the entities of HTML replaced, twice.

    Without ftfy a text with characters beyond ASCII stays as it is, with a warning: ftfy is optional, as in open_clip's time of
    training it was not, and it changes such characters only (typographic quotes become ASCII ones).
    """
    ftfy = _ftfy()
    if ftfy is not None:
        text = ftfy.fix_text(text)
    elif not text.isascii():
        warn_once(
            "ftfy is not installed, so characters beyond ASCII reach CLIP's tokenizer as they are; pip install ftfy to repair "
            "them as open_clip does"
        )
    return html.unescape(html.unescape(text))


def clean_text(text: str) -> str:
    """Return `repair_text(text)` in lower case, with single blanks."""
    return " ".join(repair_text(text).split()).lower()


@lru_cache(maxsize=1)
def _ftfy() -> Any:
    """The module ftfy; None if it is not installed."""
    try:
        import ftfy
    except ImportError:
        return None
    return ftfy
