"""Writing a cache: a video is staged in a folder of its own and published by one rename, so present means complete."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from rvos_cache.errors import InputError
from rvos_cache.store.card import Card, canonical, digest, read_card, sealed, write_durably

HOST = socket.gethostname().replace(".", "-")
STAGED = re.compile(r"(?:.+\.(?P<host>[^.]*)\.(?P<pid>[0-9]{1,9})|card)\.[0-9a-f]{32}", re.DOTALL)
"""Work in progress: <video or "card">.<host>.<pid>.<uuid>; the first writers left the host and process out for the card."""


class CacheWriter:
    """A cache that is being written, by this process and any number of others.

    path: the `.zarr` folder; card: what it must be. Making it writes the card, or checks the one that is there and
    sweeps staging folders whose process is dead. Raises InputError when another card is there.
    """

    def __init__(self, path: Path, card: Card) -> None:
        self.path, self.card = Path(path), card
        self.staging, self.videos = self.path / ".staging", self.path / "videos"
        if not (self.path / "card.json").exists():
            foreign = self.path.exists() and (not self.path.is_dir() or any(p.name != ".staging" for p in self.path.iterdir()))
            # Asked again: another process may have made the cache since.
            if foreign and not (self.path / "card.json").exists():
                raise InputError(f"{self.path}: exists and is not a cache; choose another path")
            self._first(card)
        found = read_card(self.path)
        different = found.differences(card)
        if different:
            name = different[0]
            raise InputError(
                f"{self.path}: made with {name} = {found.value(name)!r}, now it is {card.value(name)!r}; "
                "use another path or the old settings"
            )
        self.staging.mkdir(exist_ok=True)
        self.videos.mkdir(exist_ok=True)
        self._sweep()

    def _first(self, card: Card) -> None:
        # Two processes may start together: each writes its card aside, and the link that comes first is the card.
        self.staging.mkdir(parents=True, exist_ok=True)
        aside = self.staging / _mine("card")
        write_durably(aside, sealed(card.model_dump()))
        try:
            os.link(aside, self.path / "card.json")
        except FileExistsError:
            pass
        finally:
            aside.unlink()
        sync(self.path)

    def done(self) -> set[str]:
        """Ids of the published videos."""
        return {p.name for p in self.videos.iterdir() if p.is_dir()}

    def publish(
        self,
        video_id: str,
        arrays: Mapping[str, Any],
        attributes: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
    ) -> bool:
        """Write one video and make it visible in one step. False: another writer was first, ours is dropped.

        arrays: name -> array, or an iterator of frames for arrays stored one chunk per frame ("features/<name>" may also
        be a (array, True) pair for that). Raises ValueError for NaN, OSError when the disk refuses; nothing is visible then.
        """
        # Zarr would write NaN as something that is not JSON.
        canonical(attributes)
        folder = self.staging / _mine(video_id)
        try:
            group = zarr.open_group(folder, mode="w-", zarr_format=3)
            # One write of the attributes: each update would rewrite zarr.json.
            group.attrs.put({**attributes, "provenance": dict(provenance or {}, when=time.strftime("%FT%TZ", time.gmtime()))})
            for name, value in arrays.items():
                _write_array(group, name, value)
            files = {str(p.relative_to(folder)): digest(p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}
            for name in files:
                sync(folder / name)
            write_durably(folder / "digests.json", sealed({"files": files}))
            for inner in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
                sync(inner)
            return self._rename(folder, self.videos / video_id)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _rename(self, folder: Path, target: Path) -> bool:
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and target.exists():
                return False
            raise
        sync(self.videos)
        return True

    def fail(self, video_id: str, message: str) -> None:
        """Record that `video_id` could not be made. One line, appended in one write: writers do not tear each other's."""
        entry = {"video": video_id, "error": " ".join(message.split()), "when": time.strftime("%FT%TZ", time.gmtime())}
        line = json.dumps({**entry, "digest": digest(canonical(entry))})
        handle = os.open(self.path / "failures.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)

    def _sweep(self) -> None:
        for entry in self.staging.iterdir():
            if not left_over(entry):
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    entry.unlink()


def staged(name: str) -> bool:
    """Whether `name` is one that a writer gives to its work in progress."""
    return STAGED.fullmatch(name) is not None


def left_over(entry: Path) -> bool:
    """Whether work in progress is of a dead process of this machine, or of another machine and a day old."""
    found = STAGED.fullmatch(entry.name)
    if found is None:
        return False
    if found["host"] == HOST:
        return not _alive(int(found["pid"]))
    try:
        return time.time() - entry.stat().st_mtime > 86_400
    except OSError:
        return False


def _mine(name: str) -> str:
    return f"{name}.{HOST}.{os.getpid()}.{uuid.uuid4().hex}"


def _write_array(group: zarr.Group, name: str, value: Any) -> None:
    """Whole arrays are one chunk; iterators and (array, True) are one chunk per frame."""
    by_frame = isinstance(value, tuple)
    array = value[0] if by_frame else value
    if not isinstance(array, np.ndarray):
        array = np.stack(list(_frames(array)))
        by_frame = True
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"array {name!r} holds NaN or infinite values")
    chunks = tuple(max(1, d) for d in array.shape)
    if by_frame:
        chunks = (1, *chunks[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            compressors=Crc32cCodec(),
            # zarr leaves out chunks of zeros, and then a lost file reads as zeros.
            config={"write_empty_chunks": True},
        )
    if array.size:
        out[...] = array


def _frames(value: Iterable[Any]) -> Iterable[np.ndarray]:
    for frame in value:
        yield np.asarray(frame)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
