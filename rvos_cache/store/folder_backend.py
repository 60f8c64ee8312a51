"""A cache in a folder: a video is staged in a folder of its own and published by one rename, so a present video is complete."""

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
from rvos_cache.store.backend import PublishedVideo
from rvos_cache.store.checksum import read_checked, with_checksum
from rvos_cache.store.staging import is_abandoned, is_staging_name, new_staging_name
from rvos_cache.system.files import append_line, drop_torn_line, sync, write_new

TOP_LEVEL = {"card.json": False, "failures.jsonl": False, "videos": True, ".staging": True}
"""The names at the top level of a cache, and whether each is a folder."""


class FolderBackend:
    """A folder on a file system, shared by any number of processes and machines. Methods: see Backend."""

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
        # An f-string: pathlib takes longer to join the path than NumPy to read a small file.
        return np.fromfile(f"{self.root}/{file}", np.uint8)

    def video_ids(self) -> set[str]:
        # A writer that was killed right after it wrote the card has created no such folder.
        return {p.name for p in self._videos.iterdir() if p.is_dir()} if self._videos.is_dir() else set()

    def published_video(self, video_id: str) -> PublishedVideo:
        folder = self._videos / video_id
        if not folder.is_dir():
            raise InputError(f"{folder}: this video is not in the cache; run the extraction again to add it")
        how_to_fix = f"delete the folder {folder} and run the extraction again"
        record = folder / "digests.json"
        values = read_checked(record.read_bytes, str(record), how_to_fix)
        return PublishedVideo(f"videos/{video_id}", values["files"], how_to_fix, values.get("content"))

    def failures(self) -> Iterator[tuple[str, bytes]]:
        try:
            raw = self._failures.read_bytes()
        except FileNotFoundError:
            return
        for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n"), 1):
            yield f"{self._failures}, line {number}", line

    def create(self, card: bytes) -> None:
        foreign = self.root.exists() and (not self.exists() or any(p.name != ".staging" for p in self.root.iterdir()))
        # Tested again: another process may have created the cache in the meantime.
        if foreign and not self.has_card():
            raise InputError(f"{self.root}: exists and is not a cache; choose another path")
        # Two processes may start together: each stages its card, and the first hard link wins.
        self._staging.mkdir(parents=True, exist_ok=True)
        staged = self._staging / new_staging_name("card")
        write_new(staged, card)
        try:
            os.link(staged, self.root / "card.json")
        except FileExistsError:
            pass
        finally:
            staged.unlink()
        sync(self.root)

    def open_for_writing(self) -> None:
        self._staging.mkdir(exist_ok=True)
        self._videos.mkdir(exist_ok=True)
        drop_torn_line(self._failures)
        for path in self._abandoned():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()

    def uri(self) -> str:
        return str(self.root.absolute())

    @contextmanager
    def marker_file(self) -> Iterator[str]:
        marker = f".staging/{new_staging_name('mark')}"
        write_new(self.root / marker, b"")
        try:
            yield marker
        finally:
            (self.root / marker).unlink(missing_ok=True)

    @contextmanager
    def staging_folder(self, video_id: str) -> Iterator[Path]:
        folder = self._staging / new_staging_name(video_id)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, video_id: str, digests: Mapping[str, str], content: str) -> bool:
        for name in digests:
            sync(staged / name)
        write_new(staged / "digests.json", with_checksum({"files": dict(digests), "content": content}))
        for folder in [*(p for p in staged.rglob("*") if p.is_dir()), staged]:
            sync(folder)
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
        append_line(self._failures, record)

    def list_below(self, path: str) -> set[str]:
        folder = self.root / path
        return {str(p.relative_to(folder)) for p in folder.rglob("*")}

    def foreign_paths(self) -> Iterator[str]:
        foreign = [path for path in _entries(self.root) if TOP_LEVEL.get(path.name) != path.is_dir()]
        foreign += [path for path in _entries(self._videos) if not path.is_dir()]
        foreign += [path for path in _entries(self._staging) if not is_staging_name(path.name)]
        yield from map(str, foreign)

    def leftovers(self) -> Iterator[str]:
        yield from map(str, self._abandoned())

    def size(self) -> int:
        return sum(map(_size_of, self.root.rglob("*")))

    def sibling_caches(self) -> list[str]:
        return sorted(map(str, self.root.parent.glob("*.zarr")))

    def _abandoned(self) -> Iterator[Path]:
        for path in _entries(self._staging):
            try:
                modified = path.stat().st_mtime
            except OSError:
                continue
            if is_abandoned(path.name, modified):
                yield path


def _entries(folder: Path) -> list[Path]:
    """The sorted contents of a folder; none if there is no such folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _size_of(path: Path) -> int:
    """The size of a file in bytes; 0 for a folder, and for what another process has just published or removed."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0
