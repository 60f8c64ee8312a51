"""A cache in an object store, where nothing can be renamed.

    <cache>.zarr/
      card.json                          what this cache is; the first conditional put stays
      attempts/<video>.<host>.<pid>.<uuid>/   the files of a video, by one writer
      commits/<video>.json               which attempt the video is, and the digest of each of its files, with one of itself
      failures/<time>.<uuid>.json        one object per failed video

A video's files are put first, its commit last and only if there is none (HTTP: If-None-Match: *), so the first writer wins
and committed means complete. Readers see committed videos alone. A store that takes a second conditional put is refused.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.store.backend import Published
from rvos_cache.store.checksum import read_checked, with_checksum
from rvos_cache.store.staging import DAY, is_old, is_staging_name, new_staging_name, video_of

TOP = ("attempts", "commits", "failures")
"""Prefixes at the top of a cache, beside card.json."""


class ObjectBackend:
    """A place at a URL of any store that fsspec knows. Methods: see Backend.

    Credentials, endpoint and the like are taken from where the store's own tools take them (AWS_... for s3).
    Raises InputError when the package for this protocol is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        protocol = url.partition("://")[0]
        try:
            kind = fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            remedy = "pip install 'rvos[s3]'" if protocol == "s3" else "install the fsspec package for it"
            raise InputError(f"{url}: no way to {protocol}:// here ({error}); {remedy}") from error
        self._root = str(kind._strip_protocol(self.url))
        self._opened: tuple[int, Any] | None = None

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        return self.has_card()

    def has_card(self) -> bool:
        with self._asking("card.json") as (fs, path):
            return bool(fs.exists(path))

    def read(self, file: str) -> NDArray[np.uint8]:
        with self._asking(file) as (fs, path):
            # A copy: readers may write into what they read.
            return np.frombuffer(fs.cat_file(path), np.uint8).copy()

    def video_ids(self) -> set[str]:
        return {name.removesuffix(".json") for name in self._listed("commits") if name.endswith(".json")}

    def published(self, video_id: str) -> Published:
        remedy = f"delete {self._commit(video_id)} and run the extraction again"
        commit = self._read_commit(video_id)
        if commit is None:
            raise InputError(f"{self._commit(video_id)}: this video is not in the cache; run the extraction again to add it")
        return Published(f"attempts/{commit['attempt']}", commit["files"], remedy)

    def failures(self) -> Iterator[tuple[str, bytes]]:
        # The names begin with the time.
        for name in sorted(name for name in self._listed("failures") if name.endswith(".json")):
            yield f"{self.url}/failures/{name}", self.read(f"failures/{name}").tobytes()

    def claim(self, card: bytes) -> None:
        foreign = sorted(name for name in self._listed("") if name not in TOP)
        if foreign and not self.has_card():
            raise InputError(f"{self.url}: holds {foreign[0]!r} and is not a cache; choose another path")
        self._probe()
        self._create("card.json", card)

    def open_for_writing(self) -> None:
        self._probe()
        for attempt in self._dead():
            self._remove(attempt)

    def address(self) -> str:
        return self.url

    @contextmanager
    def marked(self) -> Iterator[str]:
        mark = f"attempts/{new_staging_name('mark')}/mark"
        self._create(mark, b"1")
        try:
            yield mark
        finally:
            with self._asking(mark) as (fs, path):
                fs.rm_file(path)

    @contextmanager
    def staging(self, video_id: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="rvos-") as folder:
            yield Path(folder) / "video"

    def publish(self, staged: Path, video_id: str, files: Mapping[str, str]) -> bool:
        attempt, began = new_staging_name(video_id), time.time()
        at = f"attempts/{attempt}"
        with self._asking(at) as (fs, path):
            fs.put([str(staged / name) for name in files], [f"{path}/{name}" for name in files])
        if time.time() - began > DAY / 2:
            raise OSError(errno.ETIMEDOUT, "the upload took half a day; others may have swept it", f"{self.url}/{at}")
        if self._create(f"commits/{video_id}.json", with_checksum({"attempt": attempt, "files": dict(files)})):
            return True
        self._remove(attempt)
        return False

    def add_failure(self, record: bytes) -> None:
        self._create(f"failures/{time.time_ns():020d}.{uuid.uuid4().hex}.json", record)

    def inside(self, at: str) -> set[str]:
        with self._asking(at) as (fs, path):
            return {name.removeprefix(f"{path}/") for name in fs.find(path)}

    def strays(self) -> Iterator[str]:
        for name in sorted(self._listed("") - {"card.json", *TOP}):
            yield f"{self.url}/{name}"
        for prefix in ("commits", "failures"):
            for name in sorted(self._listed(prefix)):
                if not name.endswith(".json"):
                    yield f"{self.url}/{prefix}/{name}"
        for name in sorted(self._listed("attempts")):
            if not is_staging_name(name):
                yield f"{self.url}/attempts/{name}"

    def leftovers(self) -> Iterator[str]:
        for attempt in self._dead():
            yield f"{self.url}/attempts/{attempt}"

    def size(self) -> int:
        with self._asking("") as (fs, path):
            return sum(int(info["size"]) for info in fs.find(path, detail=True).values())

    def beside(self) -> list[str]:
        folder = self.url.rpartition("/")[0]
        with self._asking("") as (fs, path):
            names = {name.rstrip("/").rpartition("/")[2] for name in fs.ls(path.rpartition("/")[0], detail=False)}
        return sorted(f"{folder}/{name}" for name in names if name.endswith(".zarr"))

    @contextmanager
    def _asking(self, file: str) -> Iterator[tuple[Any, str]]:
        """The file system and the full path of `file`. Whatever the store's client raises becomes an OSError that names it."""
        import fsspec

        path = f"{self._root}/{file}" if file else self._root
        named = f"{self.url}/{file}" if file else self.url
        if self._opened is None or self._opened[0] != os.getpid():
            # A client's connections do not survive a fork: fsspec keeps one for each process, which takes 0.2 s to make.
            # s3fs asks for the size before it reads, unless told to read in one go.
            fs = fsspec.filesystem(self.url.partition("://")[0], use_listings_cache=False, max_concurrency=1)
            self._opened = os.getpid(), fs
        try:
            yield self._opened[1], path
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, " ".join(str(error).split()) or "not found", named) from error
        except Exception as error:
            # Clients raise their own kinds: no credentials, no such host.
            said = " ".join(str(error).split()) or type(error).__name__
            raise OSError(errno.EREMOTEIO, said, named) from error

    def _listed(self, prefix: str) -> set[str]:
        """The names right below `prefix`."""
        try:
            with self._asking(prefix) as (fs, path):
                return {name.rstrip("/").removeprefix(f"{path}/") for name in fs.ls(path, detail=False)} - {"", path}
        except FileNotFoundError:
            return set()

    def _create(self, file: str, raw: bytes) -> bool:
        """Put an object where there is none. False: there is another."""
        try:
            with self._asking(file) as (fs, path):
                fs.pipe_file(path, raw, mode="create")
        except OSError:
            # Stores word their refusal differently, and an answer that was lost on its way is asked for again, and then
            # refused because of the first. What lies there now tells.
            try:
                return self.read(file).tobytes() == raw
            except FileNotFoundError:
                pass
            raise
        return True

    def _probe(self) -> None:
        """Raises InputError for a store that takes a conditional put where there is something already."""
        file, first, second = f"attempts/{new_staging_name('probe')}/probe", b"1", b"2"
        self._create(file, first)
        refused = not self._create(file, second) and self.read(file).tobytes() == first
        with self._asking(file) as (fs, path):
            fs.rm_file(path)
        if not refused:
            raise InputError(
                f"{self.url}: this store overwrites in spite of If-None-Match, so two writers could publish one video; "
                "write to a folder or a store with conditional puts"
            )

    def _dead(self) -> Iterator[str]:
        """Attempts that no commit names and that are so old that no writer will commit them: see `publish`.

        Not by process: a commit that names what another has swept would be a video without files.
        """
        # In this order: what is committed between the two is among the commits.
        attempts, committed = sorted(self._listed("attempts")), self.video_ids()
        of = Counter(map(video_of, attempts))
        for attempt in attempts:
            video_id = video_of(attempt)
            # The only attempt at a committed video is the one that its commit names.
            if video_id in committed and of[video_id] == 1:
                continue
            with self._asking(f"attempts/{attempt}") as (fs, path):
                written = max((fs.modified(name).timestamp() for name in fs.find(path)), default=time.time())
            if is_old(attempt, written) and not self._named(attempt):
                yield attempt

    def _named(self, attempt: str) -> bool:
        try:
            commit = self._read_commit(video_of(attempt))
        except InputError:
            # A damaged commit may name it.
            return True
        return commit is not None and commit["attempt"] == attempt

    def _commit(self, video_id: str) -> str:
        return f"{self.url}/commits/{video_id}.json"

    def _read_commit(self, video_id: str) -> dict[str, Any] | None:
        """The commit of a video; None where it is not published. Raises InputError when it is damaged."""
        where = self._commit(video_id)
        try:
            return read_checked(
                lambda: self.read(f"commits/{video_id}.json").tobytes(), where, f"delete {where} and run the extraction again"
            )
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _remove(self, attempt: str) -> None:
        with self._asking(f"attempts/{attempt}") as (fs, path):
            for name in fs.find(path):
                fs.rm_file(name)
