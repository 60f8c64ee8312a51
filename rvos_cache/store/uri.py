"""Paths and URLs to places: the only line that knows which kinds of places there are."""

from __future__ import annotations

import re
from pathlib import Path

from rvos_cache.store.backend import Backend

URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]+):/{1,2}(?P<path>[^/].*)", re.DOTALL)
"""A Path swallows one of the slashes of s3://bucket/path: both spellings lead to the same place."""


def format_uri(path: Path | str) -> str:
    """A path or URL as a person writes it: with both slashes of s3://."""
    found = URL.fullmatch(str(path))
    return str(path) if found is None else f"{found['protocol']}://{found['path']}"


def open_backend(path: Path | str) -> Backend:
    """The place that a path or URL names. Raises InputError for a protocol that is not installed."""
    if URL.fullmatch(str(path)) is None:
        from rvos_cache.store.folder_backend import FolderBackend

        return FolderBackend(Path(path))
    from rvos_cache.store.object_backend import ObjectBackend

    return ObjectBackend(format_uri(path))
