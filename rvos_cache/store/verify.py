"""Checks of a whole cache: every file against its digest, and one digest of all its content."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.store.card import read_card
from rvos_cache.store.content import digest_of_parts
from rvos_cache.store.reader import Cache, VideoFolder
from rvos_cache.store.selections import SelectionCache
from rvos_cache.store.text import TextCache
from rvos_cache.store.tracks import TrackCache, check_declared
from rvos_cache.store.uri import open_backend
from rvos_cache.system.progress import tracked

THREADS = 8
KINDS: dict[str, type[Cache]] = {"tracks": TrackCache, "text": TextCache, "selections": SelectionCache}


def open_cache(path: Path | str) -> Cache:
    """The cache at `path`, as the class of the kind that its card names. Raises InputError."""
    return KINDS[read_card(path).kind](path)


def content_digest(path: Path | str) -> str:
    """A digest over the decoded arrays and attributes of all videos in id order, without provenance.

    It does not depend on the order or number of runs or processes that wrote the cache. Of a single video it is `Cache.content`.
    """
    cache = open_cache(path)
    video_ids = tracked(cache.video_ids(), "content")
    return digest_of_parts(part for video_id in video_ids for part in cache.folder(video_id).content_parts())


def verify(path: Path | str) -> Iterator[str]:
    """Every fault of a cache, one line each: a changed, missing or foreign file or folder, or arrays that do not fit together.

    What a dead writer left behind is not a fault: see `leftovers`.
    """
    try:
        cache = open_cache(path)
        cache.failures()
    except InputError as error:
        yield str(error)
        return
    for path in cache.backend.foreign_paths():
        yield f"{path}: does not belong here; move it out of the cache"
    # Threads: an object store answers many requests at once, and digests of large files release Python's lock.
    with ThreadPoolExecutor(THREADS) as pool:
        video_ids = cache.video_ids()
        for faults in tracked(pool.map(partial(_video_faults, cache), video_ids), "verify", len(video_ids)):
            yield from faults


def _video_faults(cache: Cache, video_id: str) -> list[str]:
    try:
        folder = cache.folder(video_id)
    except InputError as error:
        return [str(error)]
    # First, because reading the arrays compares their files with the digests: each file is fetched once.
    misfits = list(_misfits(cache, video_id))
    return list(_file_faults(folder)) or misfits


def leftovers(path: Path | str) -> Iterator[str]:
    """What dead writers left behind, one line each. It is never read, and the next extraction removes it."""
    for leftover in open_backend(path).leftovers():
        yield f"{leftover}: left by a process that died; the next extraction into this cache removes it"


def _file_faults(folder: VideoFolder) -> Iterator[str]:
    present = folder.backend.list_below(folder.path)
    parents = {str(parent) for name in folder.digests for parent in Path(name).parents}
    for name in sorted(present - {"digests.json", *folder.digests, *parents}):
        yield f"{folder.location(name)}: does not belong here; {folder.how_to_fix}"
    for name in folder.unchecked_files():
        try:
            folder.read_file(name)
        except InputError as error:
            yield str(error)


def _misfits(cache: Cache, video_id: str) -> Iterator[str]:
    try:
        if isinstance(cache, TrackCache):
            record = cache.read(video_id)
            declared = check_declared(cache.card, record)
            # From the names of the files, because `names` would read them: features/<name>/zarr.json is an array.
            arrays = [name.removesuffix("/zarr.json") for name in cache.folder(video_id).digests if name.endswith("/zarr.json")]
            extra = sorted(name for name in arrays if "/" in name and name not in declared)
            if extra:
                yield f"{cache.backend}, video {video_id}: array {extra[0]!r} is not declared in the card; extract it again"
        elif isinstance(cache, TextCache):
            cache.words(video_id)
        elif isinstance(cache, SelectionCache):
            cache.selections(video_id)
    except (InputError, ValueError) as error:
        yield f"{cache.backend}, video {video_id}: {error}"
