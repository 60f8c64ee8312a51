"""Zips as the benchmarks' servers take them: whole or not there, and equal files give equal bytes."""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Iterable
from pathlib import Path

from rvos_cache.errors import InputError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold."""


def write_zip(out: Path, entries: Iterable[tuple[str, bytes]]) -> Path:
    """Write `out` from names and contents, which are taken one after the other; returns it.

    What `entries` raises leaves nothing behind. Raises InputError: `out` cannot be written.
    """
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
            # Stored: PNGs are compressed already.
            for name, content in entries:
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, content)
        os.replace(aside, out)
    except OSError as error:
        raise InputError(f"{out}: the zip cannot be written ({error.strerror}); free or change the place") from error
    finally:
        aside.unlink(missing_ok=True)
    return out
