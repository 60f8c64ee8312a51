"""meta_expressions.json, the list of videos of MeViS, Ref-YouTube-VOS and the converted Ref-DAVIS17.

{"videos": {video: {"expressions": {id: {"exp": text, ...}}, "frames": [stems]}}}. The other keys of an expression differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rvos_cache.datasets.base import make_expression
from rvos_cache.datasets.json_files import read_json
from rvos_cache.datasets.listed import ListedDataset
from rvos_cache.errors import InputError
from rvos_cache.media.frames import order_fault, sort_frames
from rvos_cache.types import Expression, check_id


def read_videos(path: Path, duplicate_keys: list[str]) -> dict[str, Any]:
    """Return video id -> its entry, in file order. Raises InputError: if the file is not JSON or has no object of videos."""
    content = read_json(path, duplicate_keys)
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise InputError(f'{path}: expected {{"videos": {{...}}}}; copy the file again from the dataset')
    return videos


def frame_names(entry: dict[str, Any], location: str) -> list[str]:
    """Return the stems of the frames of a video's entry, in natural order. location: file and video, for error messages.

    Lists that were written from a folder have any order. Raises InputError: if there is no list, a name cannot name a file or is
    listed twice, or the list has another order than the names, which do not tell theirs.
    """
    names = entry.get("frames")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise InputError(f'{location}: "frames" must be a list of one name or more; copy the file again')
    for name in names:
        check_id(name, f"{location}, frame")
    if len(set(names)) != len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{location}: frame {duplicate} is listed twice; list each frame once")
    in_order = sort_frames(names)
    fault = None if names == in_order else order_fault(names)
    if fault is not None:
        problem = f"the order of the frames is unknown: they are not listed by name, and {fault}"
        raise InputError(f"{location}: {problem}; list them in natural order of their names")
    return in_order


def expression_entries(entry: dict[str, Any], location: str) -> dict[str, Any]:
    """Return expression id -> its entry, in file order. Raises InputError: if the video's entry has no object of them."""
    entries = entry.get("expressions")
    if not isinstance(entries, dict):
        raise InputError(f'{location}: "expressions" must be an object of id: {{"exp": ...}}; copy the file again')
    return entries


class MetaExpressions(ListedDataset[Any]):
    """A split whose `file` is a meta_expressions.json. A subclass reads the list and adds frames and ground truth."""

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """Return the ids in file order, also of expressions that cannot be read. Raises InputError: if the list is damaged."""
        return tuple(self._expression_entries(video_id))

    def _read_list(self, file: Path) -> None:
        """Set `file`, `videos` and `duplicate_keys`. Raises InputError: if there is no such file, or no list in it."""
        if not file.exists():
            # `splits` leaves out those whose videos are another split's.
            further = sorted(path.parent.name for path in file.parent.parent.glob(f"*/{file.name}"))
            raise self._no_split(f"{file}: not found", further=further)
        self.file, self.duplicate_keys = file, []
        self.videos = read_videos(file, self.duplicate_keys)

    def _entry(self, video_id: str) -> dict[str, Any]:
        """Return the entry of a video. Raises InputError: if the id cannot name a folder, or the video is not listed."""
        entry = super()._entry(video_id)
        if not isinstance(entry, dict):
            raise self._not_listed(video_id)
        return entry

    def _expression_entries(self, video_id: str) -> dict[str, Any]:
        """Return expression id -> its entry. Raises InputError."""
        return expression_entries(self._entry(video_id), f"{self.file}, video {video_id}")

    def _frame_names(self, video_id: str) -> list[str]:
        return frame_names(self._entry(video_id), f"{self.file}, video {video_id}")

    def _read_expression(
        self, video_id: str, expression_id: str, targets: Callable[[dict[str, Any], str], tuple[str, ...]] | None
    ) -> Expression:
        """Return one expression. targets: (entry, its location) -> object ids; None: the split has no ground truth.

        Raises InputError: if the entry cannot be read.
        """
        location = f"{self.file}, video {video_id}, expression {expression_id}"
        entry = self._expression_entries(video_id)[expression_id]
        if not isinstance(entry, dict) or not isinstance(entry.get("exp"), str):
            raise InputError(f'{location}: expected {{"exp": text}}; copy the file again')
        object_ids = None if targets is None else targets(entry, location)
        return make_expression(self.file, video_id, expression_id, entry["exp"], object_ids)
