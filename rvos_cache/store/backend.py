"""Where a cache lives: a folder, or a prefix of an object store. The rest of the store does not know which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Published:
    """A video that is in the cache.

    at: where its files lie, below the place; files: name -> digest of its bytes; remedy: what to do when one is damaged.
    """

    at: str
    files: Mapping[str, str]
    remedy: str


class Backend(Protocol):
    """Where a cache lives. Files are named by their paths below it; str() is how a person names it.

    Every method raises OSError when the disk or the object store refuses, FileNotFoundError where there is no such file.
    """

    def exists(self) -> bool:
        """Whether anything that may be a cache is here."""

    def has_card(self) -> bool:
        """Whether a card is here: a cache was begun."""

    def read(self, file: str) -> NDArray[np.uint8]:
        """The bytes of a file."""

    def video_ids(self) -> set[str]:
        """The published videos."""

    def published(self, video_id: str) -> Published:
        """Where a video lies. Raises InputError when it is not here, or its record is damaged."""

    def failures(self) -> Iterator[tuple[str, bytes]]:
        """The records of failed videos, oldest first, each with where it stands."""

    def claim(self, card: bytes) -> None:
        """Make this a cache: the card that comes first stays. Raises InputError when something else is here."""

    def open_for_writing(self) -> None:
        """Prepare for `publish` and remove what dead writers left. Raises InputError when a promise cannot be held here."""

    def address(self) -> str:
        """What names this place from any working folder and from any machine that shares it."""

    def marked(self) -> AbstractContextManager[str]:
        """A new file, removed at the end, that only those can read who share this place and not one of the same name."""

    def staging(self, video_id: str) -> AbstractContextManager[Path]:
        """A new folder of this machine for a video's files, removed at the end."""

    def publish(self, staged: Path, video_id: str, files: Mapping[str, str]) -> bool:
        """Make the files below `staged` the video, all at once. False: another writer was first, ours is dropped."""

    def add_failure(self, record: bytes) -> None:
        """Keep a record of a failed video. Writers do not tear each other's."""

    def inside(self, at: str) -> set[str]:
        """Everything below `at`, by its path from there."""

    def strays(self) -> Iterator[str]:
        """Full names of what does not belong to a cache, videos aside."""

    def leftovers(self) -> Iterator[str]:
        """Full names of what dead writers left behind."""

    def size(self) -> int:
        """Bytes of all that is here."""

    def beside(self) -> list[str]:
        """Paths or URLs of what is called .zarr and lies where this place lies, this place included, sorted."""
