"""Text files that users supply: UTF-8, with or without a byte order mark."""

from __future__ import annotations

import codecs
from pathlib import Path

from rvos_cache.errors import InputError


def has_mark(content: bytes) -> bool:
    """Whether a text file begins with a byte order mark of UTF-8, UTF-16 or UTF-32."""
    return content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))


def decode_text(content: bytes, location: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark. Raises InputError, starting with `location`."""
    # Without a mark, UTF-16 and UTF-32 have zero bytes among the first four.
    if (has_mark(content) and not content.startswith(codecs.BOM_UTF8)) or b"\0" in content[:4]:
        raise InputError(f"{location}: UTF-16 or UTF-32 text, expected UTF-8; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise InputError(f"{location}, line {line}: not UTF-8 text (byte 0x{byte:02x}); save it as UTF-8") from error


def read_text(path: Path | str) -> str:
    """The text of a file that a user supplies. Raises OSError, and InputError as `decode_text` does."""
    return decode_text(Path(path).read_bytes(), str(path))
