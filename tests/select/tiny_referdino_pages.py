"""What tests of ReferDINO's pages share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from test_a2d_sentences import write_a2d
from test_jhmdb_sentences import write_jhmdb

IMAGES = ("a2d-sentences", "jhmdb-sentences")
TRACKER = ("--tracker-set", "masks=box", "--tracker-set", "short_side=32")


def called(monkeypatch: pytest.MonkeyPatch, page: Any, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["page", *map(str, words)])
    page(standalone_mode=False)


def words_of(settings: dict[str, Any]) -> list[str]:
    """Settings as options of a page."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def write_images(tmp_path: Path) -> tuple[object, ...]:
    """The options of `referdino_images` for tiny datasets."""
    for name, write in (("a2d", write_a2d), ("jhmdb", write_jhmdb)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    return ("--a2d", tmp_path / "a2d", "--jhmdb", tmp_path / "jhmdb", "--out", tmp_path / "out")
