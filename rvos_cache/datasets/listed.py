"""Base classes of datasets whose split is one file that lists the videos."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from rvos_cache.datasets.base import Dataset
from rvos_cache.datasets.json_files import check_no_duplicates
from rvos_cache.errors import InputError
from rvos_cache.media.frames import read_image
from rvos_cache.system.progress import tracked
from rvos_cache.types import check_id

E = TypeVar("E")


class ListedDataset(Dataset, Generic[E]):
    """A split whose `file` lists its videos. videos: video id -> its entry in the file, which may be damaged.

    duplicate_keys: the keys that occur twice in one object of the file.
    """

    file: Path
    videos: dict[str, E]
    duplicate_keys: list[str]

    def video_ids(self) -> tuple[str, ...]:
        """Return the video ids in file order. Raises InputError: if a key of the file occurs twice."""
        check_no_duplicates(self.file, self.duplicate_keys)
        return tuple(self.videos)

    def _entry(self, video_id: str) -> E:
        """Return the entry of a video. Raises InputError: if the id cannot name a folder, or the video is not listed."""
        check_id(video_id, f"{self.file}, video")
        if video_id not in self.videos:
            raise self._not_listed(video_id)
        return self.videos[video_id]

    def _not_listed(self, video_id: str) -> InputError:
        return InputError(f"{self.file}: no video {video_id!r} in split {self.split}; rvos-cache check lists the faults")


class Entry(Protocol):
    """The rows of one video. faults: one line for each row that cannot be read."""

    faults: list[str]


R = TypeVar("R", bound=Entry)


class RowDataset(ListedDataset[R]):
    """A split whose file is read row by row, so that a video's entry has its own list of faults."""

    def check(self) -> Iterator[str]:
        """Yield every fault, one line each."""
        for video_id in tracked(self.videos, f"check {self.split}"):
            try:
                entry = self._entry(video_id)
            except InputError as error:
                yield str(error)
                continue
            yield from entry.faults
            yield from self._check_video(video_id, entry)

    @abstractmethod
    def _check_video(self, video_id: str, entry: R) -> Iterator[str]:
        """Yield the faults of a video's sentences, frames and masks; `check` yields those of its rows."""

    def _valid_entry(self, video_id: str) -> R:
        """Return the entry of a video. Raises InputError: if it is not listed or one of its rows has a fault."""
        entry = self._entry(video_id)
        if entry.faults:
            raise InputError(entry.faults[0])
        return entry


def check_frames(
    folder: Path, names: list[str], files: dict[str, list[Path]], upright: bool
) -> Generator[str, None, tuple[int, int] | None]:
    """Yield the faults of a video's frames; return the size (H, W) of the first frame that can be read.

    names: stems of the listed frames; files: stem -> the images of that stem in `folder`; upright: see `Dataset.upright`.
    """
    size = None
    for name in names:
        paths = files.get(name, [folder / f"{name}.jpg"])
        if len(paths) > 1:
            yield f"{folder}: frame {name} occurs twice, as {' and '.join(p.name for p in paths)}; keep one"
        try:
            frame_size = read_image(paths[0], upright).shape[:2]
        except InputError as error:
            yield str(error)
            continue
        size = size or frame_size
        if frame_size != size:
            yield f"{paths[0]}: {frame_size} pixels (height, width), the first frame has {size}; copy it again from the dataset"
    unlisted = [path.name for name in files.keys() - set(names) for path in files[name]]
    if unlisted:
        yield f"{folder}: {len(unlisted)} of its frames are not listed, {min(unlisted)} first; list or remove them"
    return size
