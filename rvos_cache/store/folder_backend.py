"""A cache in a folder: a video is staged beside the others and published by one rename, so present means complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.store.backend import Published
from rvos_cache.store.checksum import read_checked, with_checksum
from rvos_cache.store.staging import is_dead, is_staging_name, new_staging_name

TOP = {"card.json": False, "failures.jsonl": False, "videos": True, ".staging": True}
"""What lies at the top of a cache, and whether it is a folder."""


class FolderBackend:
    """A place on a file system, shared by any number of processes and machines. Methods: see Backend."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging, self._videos, self._failures = root / ".staging", root / "videos", root / "failures.jsonl"

    def __str__(self) -> str:
        return str(self.root)

    def exists(self) -> bool:
        return self.root.is_dir()

    def has_card(self) -> bool:
        return (self.root / "card.json").exists()

    def read(self, file: str) -> NDArray[np.uint8]:
        # One string, not pathlib: joining paths costs more than reading a small file.
        return np.fromfile(f"{self.root}/{file}", np.uint8)

    def video_ids(self) -> set[str]:
        # A writer that was killed right after its card leaves no such folder.
        return {p.name for p in self._videos.iterdir() if p.is_dir()} if self._videos.is_dir() else set()

    def published(self, video_id: str) -> Published:
        at, folder = f"videos/{video_id}", self._videos / video_id
        if not folder.is_dir():
            raise InputError(f"{folder}: this video is not in the cache; run the extraction again to add it")
        remedy = f"delete the folder {folder} and run the extraction again"
        record = folder / "digests.json"
        return Published(at, read_checked(record.read_bytes, str(record), remedy)["files"], remedy)

    def failures(self) -> Iterator[tuple[str, bytes]]:
        try:
            raw = self._failures.read_bytes()
        except FileNotFoundError:
            return
        for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n"), 1):
            yield f"{self._failures}, line {number}", line

    def claim(self, card: bytes) -> None:
        foreign = self.root.exists() and (not self.exists() or any(p.name != ".staging" for p in self.root.iterdir()))
        # Asked again: another process may have made the cache since.
        if foreign and not self.has_card():
            raise InputError(f"{self.root}: exists and is not a cache; choose another path")
        # Two processes may start together: each writes its card aside, and the link that comes first is the card.
        self._staging.mkdir(parents=True, exist_ok=True)
        aside = self._staging / new_staging_name("card")
        write_durably(aside, card)
        try:
            os.link(aside, self.root / "card.json")
        except FileExistsError:
            pass
        finally:
            aside.unlink()
        sync(self.root)

    def open_for_writing(self) -> None:
        self._staging.mkdir(exist_ok=True)
        self._videos.mkdir(exist_ok=True)
        for entry in self._dead():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    entry.unlink()

    def address(self) -> str:
        return str(self.root.absolute())

    @contextmanager
    def marked(self) -> Iterator[str]:
        mark = f".staging/{new_staging_name('mark')}"
        write_durably(self.root / mark, b"")
        try:
            yield mark
        finally:
            (self.root / mark).unlink(missing_ok=True)

    @contextmanager
    def staging(self, video_id: str) -> Iterator[Path]:
        folder = self._staging / new_staging_name(video_id)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, video_id: str, files: Mapping[str, str]) -> bool:
        for name in files:
            sync(staged / name)
        write_durably(staged / "digests.json", with_checksum({"files": dict(files)}))
        for inner in [*(p for p in staged.rglob("*") if p.is_dir()), staged]:
            sync(inner)
        target = self._videos / video_id
        try:
            os.rename(staged, target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and target.exists():
                return False
            raise
        sync(self._videos)
        return True

    def add_failure(self, record: bytes) -> None:
        # One append in one write.
        handle = os.open(self._failures, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, record + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)

    def inside(self, at: str) -> set[str]:
        folder = self.root / at
        return {str(p.relative_to(folder)) for p in folder.rglob("*")}

    def strays(self) -> Iterator[str]:
        foreign = [entry for entry in _inside(self.root) if TOP.get(entry.name) != entry.is_dir()]
        foreign += [entry for entry in _inside(self._videos) if not entry.is_dir()]
        foreign += [entry for entry in _inside(self._staging) if not is_staging_name(entry.name)]
        yield from map(str, foreign)

    def leftovers(self) -> Iterator[str]:
        yield from map(str, self._dead())

    def size(self) -> int:
        return sum(map(_size_of, self.root.rglob("*")))

    def beside(self) -> list[str]:
        return sorted(map(str, self.root.parent.glob("*.zarr")))

    def _dead(self) -> Iterator[Path]:
        for entry in _inside(self._staging):
            try:
                written = entry.stat().st_mtime
            except OSError:
                continue
            if is_dead(entry.name, written):
                yield entry


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _size_of(path: Path) -> int:
    """Bytes of a file; 0 of a folder, and of what another process has just published or swept."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def write_durably(path: Path, raw: bytes) -> None:
    """Write and fsync a file."""
    with open(path, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
