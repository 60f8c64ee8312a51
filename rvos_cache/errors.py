"""The one error a person is meant to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """Something outside the program is wrong: a file, a setting, a disk.

    The message is one line: what was wanted, what came, which file, what to do. The command lines print it
    without a traceback and exit with status 1; everything else that is raised is a bug and keeps its traceback.
    """


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What is written below `path`: a fault of the disk that names no file, as a full disk's, gets `path` as its file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
