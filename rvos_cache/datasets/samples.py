"""Lists of the frames that A2D-Sentences and JHMDB-Sentences score: one expression in one annotated frame each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rvos_cache.errors import InputError
from rvos_cache.types import check_id

V = TypeVar("V")


@dataclass(frozen=True)
class Sample:
    """One scored frame. t: its position in the video; image_id: the benchmark's name of it, unique in the split."""

    video_id: str
    expression_id: str
    t: int
    image_id: str


def listed_video(videos: Mapping[str, V], video_id: str, file: Path, split: str) -> V:
    """What `file` says of a video of the split. Raises InputError: an id that would leave the folder, or an unlisted one."""
    check_id(video_id, f"{file}, video")
    if video_id not in videos:
        raise InputError(f"{file}: no video {video_id!r} in split {split}; rvos-cache check lists them")
    return videos[video_id]


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
