"""The cleaning of a sentence before CLIP's tokenizer, as open_clip's `tokenizer.py` does it (its `clean="lower"`)."""

from __future__ import annotations

import html
import unicodedata
from functools import lru_cache
from typing import Any

from rvos_cache.errors import warn_once

MISSING_FTFY = (
    "ftfy is not installed, so characters beyond ASCII reach CLIP's tokenizer as they are written (only typographic quotes are common "
    "in datasets); pip install ftfy to repair them as open_clip does"
)


def repair_text(text: str) -> str:
    """Return `text` with its characters repaired by ftfy, and the entities of HTML replaced, twice.

    open_clip needs ftfy; here it is optional. Without it accents are still composed (NFC), as ftfy and transformers' tokenizer do,
    and a text with characters beyond ASCII gives a warning, once.
    """
    ftfy = _ftfy()
    if ftfy is not None:
        text = ftfy.fix_text(text)
    elif not text.isascii():
        warn_once(MISSING_FTFY)
        text = unicodedata.normalize("NFC", text)
    return html.unescape(html.unescape(text))


def clean_text(text: str) -> str:
    """Return `repair_text(text)` in lower case, with single blanks."""
    return " ".join(repair_text(text).split()).lower()


def has_ftfy() -> bool:
    """Whether ftfy is installed."""
    return _ftfy() is not None


@lru_cache(maxsize=1)
def _ftfy() -> Any:
    """The module ftfy; None if it is not installed."""
    try:
        import ftfy
    except ImportError:
        return None
    return ftfy
