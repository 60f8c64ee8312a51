"""Paths as people give them: one or several, strings or Path objects, files or URLs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PathLike = str | os.PathLike[str]
Paths = PathLike | Iterable[PathLike]


def as_paths(paths: Paths) -> list[Path]:
    """A list of Path objects, of one path or of several."""
    if isinstance(paths, (str, os.PathLike)):
        return [Path(paths)]
    return [Path(path) for path in paths]
