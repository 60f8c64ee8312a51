"""Atomic writes: a reader finds a file whole or, after a crash or on a full disk, as it was before. Text files that users supply."""

from __future__ import annotations

import codecs
import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError


@contextmanager
def replace_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path next to `path`; what the block writes there replaces `path` when the block ends.

    The content is synced to the disk before it replaces `path`. Missing parent folders are created. A symbolic link is
    followed, and what is not a regular file (a pipe, /dev/stdout) is written in place. If the block raises, `path` stays as
    it was and the temporary file is removed. Raises OSError with `path` as its file name.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            yield target
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        # An error of a full disk names no file, and the name of the temporary file says nothing to the user.
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: Path | str, content: bytes) -> None:
    """Replace the file `path` by `content` atomically. See `replace_file`."""
    with replace_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_text(path: Path | str, text: str) -> None:
    """Replace the file `path` by `text` in UTF-8 atomically. See `replace_file`."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Replace the file `path` by `value` as JSON, indented by one space, atomically. See `replace_file`."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_new(path: Path | str, content: bytes) -> None:
    """Write a file that no reader opens before this returns, and sync it. A crash may leave a part. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path | str, line: bytes) -> None:
    """Append `line` and a newline in one write, so that concurrent writers do not mix their lines, and sync. Raises OSError."""
    content = line + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def sync(path: Path | str) -> None:
    """Bring a file, or the names in a folder, to the disk (fsync). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
