"""meta_expressions.json, as MeViS, Ref-YouTube-VOS and the converted Ref-DAVIS17 have it, and the frames that it lists.

{"videos": {video: {"expressions": {id: {"exp": text, ...}}, "frames": [stems]}}}; what else an expression holds differs.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from rvos_cache.datasets.base import Dataset
from rvos_cache.errors import InputError
from rvos_cache.frames import read_image
from rvos_cache.types import Expression, check_id


def read_json(path: Path, repeated: list[str]) -> Any:
    """What a JSON file holds; keys that stand twice in one object go to `repeated`. Raises InputError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            keys = [key for key, _ in items]
            repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return found

    try:
        return json.loads(path.read_text("utf-8"), object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not JSON ({error.msg}); copy the file again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again") from error


def read_videos(path: Path, repeated: list[str]) -> dict[str, Any]:
    """Video -> its entry, in file order. Raises InputError: no JSON, or no object of videos."""
    content = read_json(path, repeated)
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise InputError(f'{path}: wanted {{"videos": {{...}}}}; copy the file again from the dataset')
    return videos


def twice(path: Path, key: str) -> str:
    """The fault of a key that stands twice in one object of `path`."""
    return f"{path}: the key {key!r} stands twice in one object; the first is lost: give them different ids"


def check_once(path: Path, repeated: list[str]) -> None:
    """Raises InputError when a key of `path` stands twice: a split without what was lost is another split."""
    if repeated:
        raise InputError(twice(path, repeated[0]))


def listed_frames(entry: dict[str, Any], where: str) -> list[str]:
    """The stems that a video's entry lists, sorted; where: names file and video.

    Raises InputError: no list, a name that leaves the folder, a name listed twice.
    """
    names = entry.get("frames")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f'{where}: "frames" must be a list of one name or more; copy the file again')
    for name in names:
        check_id(name, f"{where}, frame")
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where}: frame {repeated} is listed twice; name each frame once")
    # Lists that were written from a folder have any order; shorter names first, so that "2" comes before "10".
    return sorted(names, key=lambda name: (len(name), name))


def listed_expressions(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Expression id -> what the file says of it, in file order. Raises InputError: no object."""
    listed = entry.get("expressions")
    if not isinstance(listed, dict):
        raise InputError(f'{where}: "expressions" must be an object of id: {{"exp": ...}}; copy the file again')
    return listed


class ListedVideos(Dataset, ABC):
    """A split whose `file` is such a list. An adapter reads the list first, and adds frames and answers.

    videos: video -> its entry, which may be damaged; repeated: keys of the file that stand twice.
    """

    root: Path
    split: str
    file: Path
    videos: dict[str, Any]
    repeated: list[str]

    @staticmethod
    @abstractmethod
    def splits(root: Path) -> list[str]:
        """The splits found under `root`."""

    def video_ids(self) -> tuple[str, ...]:
        """The videos in file order. Raises InputError when a key of the list stands twice."""
        check_once(self.file, self.repeated)
        return tuple(self.videos)

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """The ids in file order, also those of expressions that cannot be read. Raises InputError."""
        return tuple(self._listed(video_id))

    def _read_list(self, file: Path) -> None:
        """Raises InputError: no such file, or no list."""
        if not file.exists():
            there = ", ".join(self.splits(self.root)) or "none"
            raise InputError(f"{file}: not found; splits of {self.root}: {there}; give another --root or --split")
        self.file, self.repeated = file, []
        self.videos = read_videos(file, self.repeated)

    def _entry(self, video_id: str) -> dict[str, Any]:
        """What the list says of a video. Raises InputError: an id that would leave the folder, or an unlisted one."""
        check_id(video_id, f"{self.file}, video")
        entry = self.videos.get(video_id)
        if not isinstance(entry, dict):
            raise InputError(f"{self.file}: no video {video_id!r} in split {self.split}; rvos-cache check lists them")
        return entry

    def _listed(self, video_id: str) -> dict[str, Any]:
        """Expression id -> what the list says of it. Raises InputError."""
        return listed_expressions(self._entry(video_id), f"{self.file}, video {video_id}")

    def _frame_names(self, video_id: str) -> list[str]:
        return listed_frames(self._entry(video_id), f"{self.file}, video {video_id}")

    def _sentence(self, video_id: str, key: str, targets: Callable[[dict[str, Any], str], tuple[str, ...]] | None) -> Expression:
        """One expression. targets: its entry, and where that stands, to its objects; None: they are hidden. Raises InputError."""
        where, entry = f"{self.file}, video {video_id}, expression {key}", self._listed(video_id)[key]
        if not isinstance(entry, dict) or not isinstance(entry.get("exp"), str):
            raise InputError(f'{where}: wanted {{"exp": text}}; copy the file again')
        named = None if targets is None else targets(entry, where)
        try:
            return Expression(video_id, key, entry["exp"], named)
        except InputError as error:
            raise InputError(f"{self.file}, {error}") from error


def check_frames(folder: Path, names: list[str], files: dict[str, list[Path]]) -> Generator[str, None, tuple[int, int] | None]:
    """Faults of a video's frames; returns the size (H, W) of the first that can be read."""
    size = None
    for name in names:
        held = files.get(name, [folder / f"{name}.jpg"])
        if len(held) > 1:
            yield f"{folder}: frame {name} stands twice, as {' and '.join(p.name for p in held)}; keep one"
        try:
            found = read_image(held[0]).shape[:2]
        except InputError as error:
            yield str(error)
            continue
        size = size or found
        if found != size:
            yield f"{held[0]}: {found} pixels (height, width), the first frame has {size}; copy it again from the dataset"
    unlisted = [path.name for name in files.keys() - set(names) for path in files[name]]
    if unlisted:
        yield f"{folder}: no list names {len(unlisted)} of its frames, {min(unlisted)} first; list or remove them"
    return size
