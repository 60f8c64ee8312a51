"""The error and the warnings that users read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


class InputError(Exception):
    """Something outside the program is wrong: a file, a setting, a plugin, a disk.

    The message is one line: what was expected, what was found, which file, what to do. The command lines print it
    without a traceback and exit with status 1; any other exception is a bug and keeps its traceback.
    """


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Set `path` as the file name of an OSError that has none (a full disk, for example), for code that writes below `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@cache
def warn_once(message: str) -> None:
    """Warn about an input that is read in one of several possible ways; a process repeats no message.

    The message is one line: what was found, which file, how it is read.
    """
    warnings.warn(message, stacklevel=3)
