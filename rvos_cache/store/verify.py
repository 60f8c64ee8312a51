"""Whole-cache checks: every file against its digest, and one digest of everything a cache says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rvos_cache.errors import InputError
from rvos_cache.store.card import canonical, digest, read_card
from rvos_cache.store.reader import Cache, VideoFolder
from rvos_cache.store.selections import SelectionCache
from rvos_cache.store.text import TextCache
from rvos_cache.store.tracks import TrackCache
from rvos_cache.store.writer import left_over, staged

TOP = {"card.json": False, "failures.jsonl": False, "videos": True, ".staging": True}
"""What lies at the top of a cache, and whether it is a folder."""
KINDS: dict[str, type[Cache]] = {"tracks": TrackCache, "text": TextCache, "selections": SelectionCache}


def open_cache(path: Path) -> Cache:
    """The cache at `path`, of whatever kind its card says."""
    return KINDS[read_card(Path(path)).kind](path)


def content_digest(path: Path) -> str:
    """A digest over the decoded arrays and attributes of all videos in id order, without provenance.

    It does not depend on the order or number of runs or processes that wrote the cache.
    """
    cache, total = open_cache(path), hashlib.blake2b(digest_size=16)
    for video_id in cache.video_ids():
        for part in _content(cache, video_id):
            total.update(part)
    return total.hexdigest()


def video_digest(cache: Cache, video_id: str) -> str:
    """`content_digest` of one video alone."""
    return digest(b"".join(_content(cache, video_id)))


def _content(cache: Cache, video_id: str) -> Iterator[bytes]:
    folder = cache.folder(video_id)
    yield canonical([video_id, {k: v for k, v in folder.attributes.items() if k != "provenance"}])
    for name in folder.names():
        array = folder.array(name)
        yield canonical([name, str(array.dtype), list(array.shape)])
        yield np.ascontiguousarray(array).tobytes()


def verify(path: Path) -> Iterator[str]:
    """Every fault of a cache, one line each: a changed, missing or foreign file or folder, or arrays that do not fit together.

    What a dead process left in `.staging` is no fault: see `leftovers`.
    """
    path = Path(path)
    try:
        cache = open_cache(path)
        cache.failures()
    except InputError as error:
        yield str(error)
        return
    yield from _strays(path)
    for video_id in cache.video_ids():
        try:
            folder = VideoFolder(path / "videos" / video_id)
        except InputError as error:
            yield str(error)
            continue
        faults = list(_faults(folder))
        yield from faults
        if not faults:
            yield from _misfits(cache, video_id)


def leftovers(path: Path) -> Iterator[str]:
    """Notes, one line each: what dead processes left in `.staging`. It is never read, and the next extraction sweeps it."""
    for entry in _inside(Path(path) / ".staging"):
        if left_over(entry):
            yield f"{entry}: left by a process that died; the next extraction into this cache removes it"


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _strays(path: Path) -> Iterator[str]:
    foreign = [entry for entry in _inside(path) if TOP.get(entry.name) != entry.is_dir()]
    foreign += [entry for entry in _inside(path / "videos") if not entry.is_dir()]
    foreign += [entry for entry in _inside(path / ".staging") if not staged(entry.name)]
    for entry in foreign:
        yield f"{entry}: does not belong here; move it out of the cache"


def _faults(folder: VideoFolder) -> Iterator[str]:
    present = {str(p.relative_to(folder.path)) for p in folder.path.rglob("*")}
    belong = {"digests.json", *folder.files, *(str(parent) for name in folder.files for parent in Path(name).parents)}
    for name in sorted(present - belong):
        yield f"{folder.path / name}: does not belong here; {folder.remedy}"
    for name in folder.files:
        try:
            folder.check(name)
        except InputError as error:
            yield str(error)


def _misfits(cache: Cache, video_id: str) -> Iterator[str]:
    try:
        if isinstance(cache, TrackCache):
            cache.read(video_id)
        elif isinstance(cache, TextCache):
            cache.words(video_id)
        elif isinstance(cache, SelectionCache):
            cache.selections(video_id)
    except (InputError, ValueError) as error:
        yield f"{cache.path}, video {video_id}: {error}"
