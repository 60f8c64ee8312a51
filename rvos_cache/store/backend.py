"""The interface to where a cache is stored: a folder, or a prefix of an object store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PublishedVideo:
    """A video that is in the cache.

    path: of the folder of its files, relative to the backend; digests: file name -> digest of its bytes; how_to_fix: the end
    of messages about a damaged file; content: the identity of the video, None where an older version wrote it.
    """

    path: str
    digests: Mapping[str, str]
    how_to_fix: str
    content: str | None = None


class Backend(Protocol):
    """Where a cache is stored. Files are named by their paths relative to it; str() gives its path or URL.

    Every method raises OSError if the disk or the object store fails, FileNotFoundError if there is no such file.
    """

    def exists(self) -> bool:
        """Whether there is anything here that may be a cache."""

    def has_card(self) -> bool:
        """Whether a card has been written: a cache was created."""

    def read(self, file: str) -> NDArray[np.uint8]:
        """The bytes of a file, uint8 (bytes,), writable."""

    def video_ids(self) -> set[str]:
        """The ids of the published videos."""

    def published_video(self, video_id: str) -> PublishedVideo:
        """The files of a video. Raises InputError if it is not in the cache or its record is damaged."""

    def failures(self) -> Iterator[tuple[str, bytes]]:
        """The location and the content of each record of a failed video, oldest first."""

    def create(self, card: bytes) -> None:
        """Write the card, unless another process wrote one first. Raises InputError if something else is stored here."""

    def open_for_writing(self) -> None:
        """Prepare for `publish` and remove what dead writers left. Raises InputError if atomic publishing is impossible here."""

    def uri(self) -> str:
        """The absolute path or URL, valid from any working folder and on any machine that shares the disk."""

    def marker_file(self) -> AbstractContextManager[str]:
        """Create a new file, removed at the end: only machines that share this backend, and not one of the same path, read it."""

    def staging_folder(self, video_id: str) -> AbstractContextManager[Path]:
        """The path of a new local folder for the files of a video, removed at the end."""

    def publish(self, staged: Path, video_id: str, digests: Mapping[str, str], content: str) -> bool:
        """Publish the files below `staged` as the video, atomically. False: another writer was first, ours is dropped.

        digests, content: as in `PublishedVideo`.
        """

    def add_failure(self, record: bytes) -> None:
        """Add a record of a failed video. Records of concurrent writers do not mix."""

    def list_below(self, path: str) -> set[str]:
        """All files, and where they exist folders, below `path`, relative to it."""

    def foreign_paths(self) -> Iterator[str]:
        """The full names of files and folders that do not belong to a cache, outside of the videos."""

    def leftovers(self) -> Iterator[str]:
        """The full names of what dead writers left behind."""

    def size(self) -> int:
        """The total size of all files, in bytes."""

    def sibling_caches(self) -> list[str]:
        """The paths or URLs of everything named *.zarr in the parent folder, this cache included, sorted."""
