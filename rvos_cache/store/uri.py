"""From paths and URLs to backends. No other module of the store knows which backends exist."""

from __future__ import annotations

import re
from pathlib import Path

from rvos_cache.store.backend import Backend

URL = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]+):/{1,2}(?P<path>[^/].*)", re.DOTALL)
"""With one slash or two: pathlib.Path drops one of the slashes of s3://bucket/path."""


def format_uri(path: Path | str) -> str:
    """A path as it is, a URL with both slashes after its protocol."""
    match = URL.fullmatch(str(path))
    return str(path) if match is None else f"{match['protocol']}://{match['path']}"


def open_backend(path: Path | str) -> Backend:
    """The backend of a path or URL. Raises InputError if the package for the URL's protocol is not installed."""
    if URL.fullmatch(str(path)) is None:
        from rvos_cache.store.folder_backend import FolderBackend

        return FolderBackend(Path(path))
    from rvos_cache.store.object_backend import ObjectBackend

    return ObjectBackend(format_uri(path))
