"""Whether the files that a video was imported from are still those: a later import must not mix two sets of files in silence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction import check_unchanged
from rvos_cache.store import Card, TrackCache

SOURCE = "source"
"""The entry of a video's provenance with the digest of the files that it was imported from."""


def source_digest(paths: Iterable[Path]) -> str:
    """The digest of files, and of all files below folders: their names and bytes. What is missing is left out."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        files = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path] if path.is_file() else []
        for file in files:
            content = hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
            total.update(repr((str(file.relative_to(path.parent)), content)).encode())
    return total.hexdigest()


def check_same_sources(
    out: Path | str, card: Card, dataset: Dataset, video_ids: Sequence[str], paths_of: Callable[[str], Iterable[Path]]
) -> None:
    """Compare the videos that the cache `out` holds already with the dataset and with the files that they were imported from.

    paths_of: video -> its files and folders. Raises InputError for a video that changed in either.
    """
    published = check_unchanged(out, card, dataset, video_ids)
    if not published:
        return
    cache = TrackCache(out)
    for video_id in published:
        folder = cache.folder(video_id)
        stored = folder.attributes["provenance"].get(SOURCE)
        if stored is not None and stored != source_digest(paths_of(video_id)):
            first = next(iter(paths_of(video_id)))
            raise InputError(
                f"{cache.path}, video {video_id}: imported from other files than are now in {first}; {folder.how_to_fix}, or "
                "import into another path"
            )
