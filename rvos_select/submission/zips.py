"""Zips for the benchmarks' servers: written completely or not at all, and equal files give equal bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.system.files import replace_file

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can store."""


def write_zip(out: Path, entries: Iterable[tuple[str, bytes]]) -> Path:
    """Write `out` from names and contents, read one after the other; returns it.

    Nothing is left on disk when `entries` raises. Raises InputError when `out` cannot be written.
    """
    try:
        with replace_file(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            # Stored: PNGs are compressed already.
            for name, content in entries:
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, content)
    except OSError as error:
        raise InputError(f"{out}: cannot write the zip ({error.strerror}); free space there, or choose another --out") from error
    return out
