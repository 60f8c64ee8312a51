"""Splits whose list is read row by row, and the frames that A2D-Sentences and JHMDB-Sentences score."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rvos_cache.datasets.base import Dataset
from rvos_cache.errors import InputError
from rvos_cache.types import check_id


@dataclass(frozen=True)
class Sample:
    """One scored frame. t: its position in the video; image_id: the benchmark's name of it, unique in the split."""

    video_id: str
    expression_id: str
    t: int
    image_id: str


class Entry(Protocol):
    """What a list says of one video. faults: what is wrong with its rows, one line each."""

    faults: list[str]


E = TypeVar("E", bound=Entry)


class ListedSplit(Dataset, ABC, Generic[E]):
    """One split whose `file` lists its videos. videos: video -> its entry. An adapter reads the file and adds what is its own."""

    split: str
    file: Path
    videos: dict[str, E]

    def video_ids(self) -> tuple[str, ...]:
        """The videos in the order of their first row."""
        return tuple(self.videos)

    def check(self) -> Iterator[str]:
        """Every fault, one line each."""
        for video_id in self.videos:
            try:
                entry = self._entry(video_id)
            except InputError as error:
                yield str(error)
                continue
            yield from entry.faults
            yield from self._check_video(video_id, entry)

    @abstractmethod
    def _check_video(self, video_id: str, entry: E) -> Iterator[str]:
        """The faults of a video's texts, frames and masks; those of its rows are told already."""

    def _entry(self, video_id: str) -> E:
        """What the file says of a video. Raises InputError: an id that would leave the folder, or an unlisted one."""
        check_id(video_id, f"{self.file}, video")
        if video_id not in self.videos:
            raise InputError(f"{self.file}: no video {video_id!r} in split {self.split}; rvos-cache check lists them")
        return self.videos[video_id]

    def _sound(self, video_id: str) -> E:
        """The same, where its rows are without fault. Raises InputError."""
        entry = self._entry(video_id)
        if entry.faults:
            raise InputError(entry.faults[0])
        return entry


def read_rows(path: Path) -> list[list[Any]]:
    """A JSON file of rows, lists of whatever they hold. Raises InputError naming the file, and the row where it is one."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not JSON ({error.msg}); copy the file again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again") from error
    if not isinstance(content, list):
        raise InputError(f"{path}: wanted a list of rows, found {type(content).__name__}; copy the file again")
    for number, row in enumerate(content, 1):
        if not isinstance(row, list):
            raise InputError(f"{path}, row {number}: wanted a list, found {type(row).__name__}; copy the file again")
    return content
