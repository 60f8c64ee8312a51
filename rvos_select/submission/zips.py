"""Zips as the benchmarks' servers take them: whole or not there, and equal files give equal bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.files import replace_file

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold."""


def write_zip(out: Path, entries: Iterable[tuple[str, bytes]]) -> Path:
    """Write `out` from names and contents, which are taken one after the other; returns it.

    What `entries` raises leaves nothing behind. Raises InputError: `out` cannot be written.
    """
    try:
        with replace_file(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            # Stored: PNGs are compressed already.
            for name, content in entries:
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, content)
    except OSError as error:
        raise InputError(f"{out}: the zip cannot be written ({error.strerror}); free or change the place") from error
    return out
