"""A cache in an object store, where nothing can be renamed.

    <cache>.zarr/
      card.json                               what this cache is; the first conditional put wins
      attempts/<video>.<host>.<pid>.<uuid>/   the staged files of a video, by one writer
      commits/<video>.json                    which staging is the video, and the digest of each of its files and of itself
      failures/<time>.<uuid>.json             one object per failed video

The files of a video are put first, its commit last and only if there is none (HTTP: If-None-Match: *). So the first writer
wins, a committed video is complete, and readers see committed videos only. A store that ignores the condition is refused.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.store.backend import PublishedVideo
from rvos_cache.store.checksum import read_checked, with_checksum
from rvos_cache.store.staging import VIDEO_LIFETIME, is_expired, is_staging_name, new_staging_name, staged_video_id

PREFIXES = ("attempts", "commits", "failures")
"""The names at the top level of a cache, apart from card.json."""


class ObjectBackend:
    """A URL of any object store that fsspec supports. Methods: see Backend.

    Credentials and endpoint come from where the store's own tools read them (for s3 the variables AWS_...).
    Raises InputError if the package for the protocol is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        protocol = url.partition("://")[0]
        try:
            filesystem = fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            how_to_fix = "pip install 'rvos[s3]'" if protocol == "s3" else "install the fsspec package for it"
            raise InputError(f"{url}: no support for {protocol}:// is installed ({error}); {how_to_fix}") from error
        self._root = str(filesystem._strip_protocol(self.url))
        self._client: tuple[int, Any] | None = None

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        return self.has_card()

    def has_card(self) -> bool:
        with self._access("card.json") as (fs, path):
            return bool(fs.exists(path))

    def read(self, file: str) -> NDArray[np.uint8]:
        with self._access(file) as (fs, path):
            # A copy, because readers may write into the array.
            return np.frombuffer(fs.cat_file(path), np.uint8).copy()

    def video_ids(self) -> set[str]:
        return {name.removesuffix(".json") for name in self._list("commits") if name.endswith(".json")}

    def published_video(self, video_id: str) -> PublishedVideo:
        location = self._commit_url(video_id)
        commit = self._read_commit(video_id)
        if commit is None:
            raise InputError(f"{location}: this video is not in the cache; run the extraction again to add it")
        how_to_fix = f"delete {location} and run the extraction again"
        return PublishedVideo(f"attempts/{commit['attempt']}", commit["files"], how_to_fix, commit.get("content"))

    def failures(self) -> Iterator[tuple[str, bytes]]:
        # The names begin with the time.
        for name in sorted(name for name in self._list("failures") if name.endswith(".json")):
            yield f"{self.url}/failures/{name}", self.read(f"failures/{name}").tobytes()

    def create(self, card: bytes) -> None:
        foreign = sorted(name for name in self._list("") if name not in PREFIXES)
        if foreign and not self.has_card():
            raise InputError(f"{self.url}: holds {foreign[0]!r} and is not a cache; choose another path")
        self._check_conditional_put()
        self._put_new("card.json", card)

    def open_for_writing(self) -> None:
        self._check_conditional_put()
        for staging in self._abandoned():
            self._remove(staging)

    def uri(self) -> str:
        return self.url

    @contextmanager
    def marker_file(self) -> Iterator[str]:
        marker = f"attempts/{new_staging_name('mark')}/mark"
        self._put_new(marker, b"1")
        try:
            yield marker
        finally:
            with self._access(marker) as (fs, path):
                fs.rm_file(path)

    @contextmanager
    def staging_folder(self, video_id: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="rvos-") as folder:
            yield Path(folder) / "video"

    def publish(self, staged: Path, video_id: str, digests: Mapping[str, str], content: str) -> bool:
        staging, start = new_staging_name(video_id), time.time()
        prefix = f"attempts/{staging}"
        with self._access(prefix) as (fs, path):
            fs.put([str(staged / name) for name in digests], [f"{path}/{name}" for name in digests])
        if time.time() - start > VIDEO_LIFETIME / 2:
            message = "the upload took half a day, so another writer may have removed its files"
            raise OSError(errno.ETIMEDOUT, message, f"{self.url}/{prefix}")
        commit = {"attempt": staging, "files": dict(digests), "content": content}
        if self._put_new(f"commits/{video_id}.json", with_checksum(commit)):
            return True
        self._remove(staging)
        return False

    def add_failure(self, record: bytes) -> None:
        self._put_new(f"failures/{time.time_ns():020d}.{uuid.uuid4().hex}.json", record)

    def list_below(self, path: str) -> set[str]:
        with self._access(path) as (fs, full_path):
            return {name.removeprefix(f"{full_path}/") for name in fs.find(full_path)}

    def foreign_paths(self) -> Iterator[str]:
        for name in sorted(self._list("") - {"card.json", *PREFIXES}):
            yield f"{self.url}/{name}"
        for prefix in ("commits", "failures"):
            for name in sorted(self._list(prefix)):
                if not name.endswith(".json"):
                    yield f"{self.url}/{prefix}/{name}"
        for name in sorted(self._list("attempts")):
            if not is_staging_name(name):
                yield f"{self.url}/attempts/{name}"

    def leftovers(self) -> Iterator[str]:
        for staging in self._abandoned():
            yield f"{self.url}/attempts/{staging}"

    def size(self) -> int:
        with self._access("") as (fs, path):
            return sum(int(info["size"]) for info in fs.find(path, detail=True).values())

    def sibling_caches(self) -> list[str]:
        parent = self.url.rpartition("/")[0]
        with self._access("") as (fs, path):
            names = {name.rstrip("/").rpartition("/")[2] for name in fs.ls(path.rpartition("/")[0], detail=False)}
        return sorted(f"{parent}/{name}" for name in names if name.endswith(".zarr"))

    @contextmanager
    def _access(self, file: str) -> Iterator[tuple[Any, str]]:
        """The file system and the full path of `file`. Any error of the store's client becomes an OSError that names it."""
        import fsspec

        path = f"{self._root}/{file}" if file else self._root
        location = f"{self.url}/{file}" if file else self.url
        if self._client is None or self._client[0] != os.getpid():
            # A client's connections do not survive a fork: fsspec keeps one client per process, which takes 0.2 s to make.
            # max_concurrency=1: otherwise s3fs requests the size of an object before it reads it.
            fs = fsspec.filesystem(self.url.partition("://")[0], use_listings_cache=False, max_concurrency=1)
            self._client = os.getpid(), fs
        try:
            yield self._client[1], path
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, " ".join(str(error).split()) or "not found", location) from error
        except Exception as error:
            # Clients raise their own types, for instance for missing credentials or an unknown host.
            message = " ".join(str(error).split()) or type(error).__name__
            raise OSError(errno.EREMOTEIO, message, location) from error

    def _list(self, prefix: str) -> set[str]:
        """The names directly below `prefix`."""
        try:
            with self._access(prefix) as (fs, path):
                return {name.rstrip("/").removeprefix(f"{path}/") for name in fs.ls(path, detail=False)} - {"", path}
        except FileNotFoundError:
            return set()

    def _put_new(self, file: str, content: bytes) -> bool:
        """Put an object if there is none of this name. False: there is another."""
        try:
            with self._access(file) as (fs, path):
                fs.pipe_file(path, content, mode="create")
        except OSError:
            # The errors of a failed condition differ between stores. And where the answer to a successful put was lost, the
            # client repeats the put, which then fails because of the first. What is stored now decides.
            try:
                return self.read(file).tobytes() == content
            except FileNotFoundError:
                pass
            raise
        return True

    def _check_conditional_put(self) -> None:
        """Raises InputError if the store overwrites an object in spite of the condition that there is none."""
        file, first, second = f"attempts/{new_staging_name('probe')}/probe", b"1", b"2"
        self._put_new(file, first)
        kept_first = not self._put_new(file, second) and self.read(file).tobytes() == first
        with self._access(file) as (fs, path):
            fs.rm_file(path)
        if not kept_first:
            raise InputError(
                f"{self.url}: this store overwrites in spite of If-None-Match, so two writers could publish one video; "
                "write to a folder or a store with conditional puts"
            )

    def _abandoned(self) -> Iterator[str]:
        """Stagings that no commit names and that are too old for their writer to commit them: see `publish`.

        Dead processes are not looked for: a commit of a staging that another writer has removed is a video without files.
        """
        # In this order: a video committed between the two calls is among the commits.
        stagings, committed = sorted(self._list("attempts")), self.video_ids()
        counts = Counter(map(staged_video_id, stagings))
        for staging in stagings:
            video_id = staged_video_id(staging)
            # The only staging of a committed video is the one that its commit names.
            if video_id in committed and counts[video_id] == 1:
                continue
            try:
                with self._access(f"attempts/{staging}") as (fs, path):
                    modified = max((fs.modified(name).timestamp() for name in fs.find(path)), default=time.time())
            except FileNotFoundError:
                continue  # its writer has removed it since it was listed
            if is_expired(staging, modified) and not self._is_committed(staging):
                yield staging

    def _is_committed(self, staging: str) -> bool:
        try:
            commit = self._read_commit(staged_video_id(staging))
        except InputError:
            # A damaged commit may name it.
            return True
        return commit is not None and commit["attempt"] == staging

    def _commit_url(self, video_id: str) -> str:
        return f"{self.url}/commits/{video_id}.json"

    def _read_commit(self, video_id: str) -> dict[str, Any] | None:
        """The commit of a video; None if it is not published. Raises InputError if it is damaged."""
        location = self._commit_url(video_id)
        how_to_fix = f"delete {location} and run the extraction again"
        try:
            return read_checked(lambda: self.read(f"commits/{video_id}.json").tobytes(), location, how_to_fix)
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _remove(self, staging: str) -> None:
        with self._access(f"attempts/{staging}") as (fs, path):
            for name in fs.find(path):
                with suppress(FileNotFoundError):  # another writer removes it too
                    fs.rm_file(name)
