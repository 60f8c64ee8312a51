"""Paths and URLs to places: the only line that knows which kinds of places there are."""

from __future__ import annotations

import re
from pathlib import Path

from rvos_cache.store.place import Place

URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]+):/{1,2}(?P<path>[^/].*)", re.DOTALL)
"""A Path swallows one of the slashes of s3://bucket/path: both spellings lead to the same place."""


def spelled(path: Path | str) -> str:
    """A path or URL as a person writes it: with both slashes of s3://."""
    found = URL.fullmatch(str(path))
    return str(path) if found is None else f"{found['protocol']}://{found['path']}"


def place_of(path: Path | str) -> Place:
    """The place that a path or URL names. Raises InputError for a protocol that is not installed."""
    if URL.fullmatch(str(path)) is None:
        from rvos_cache.store.folder import Folder

        return Folder(Path(path))
    from rvos_cache.store.objects import Objects

    return Objects(spelled(path))
