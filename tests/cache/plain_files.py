"""Videos of the user's own on disk, and how to change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from youtube_files import numbers, write_png

from rvos_cache.media.frames import VideoWriter

SIZE = (8, 12)
NAMES = ("2", "9", "10")
"""Names of the frames in the folder, neither contiguous nor of one length."""


def write_videos(folder: Path) -> None:
    """Video "a b" as a folder of frames, "film" as an mp4 of three."""
    frames = folder / "videos/a b"
    frames.mkdir(parents=True)
    for t, name in enumerate(NAMES):
        Image.fromarray(np.full((*SIZE, 3), 10 * t + 20, np.uint8)).save(frames / f"{name}.{'png' if t else 'jpg'}")
    with VideoWriter(folder / "videos/film.mp4", 5, SIZE) as writer:
        for t in range(3):
            writer.write(np.full((*SIZE, 3), 60 * t + 20, np.uint8))


def write_plain(root: Path) -> None:
    """train: two videos with masks; "a b" has two objects, and its middle frame is not annotated. test: texts only."""
    for split in ("train", "test"):
        write_videos(root / split)
    entries: dict[str, Any] = {
        "a b": {
            "x": {"text": "both squares", "objects": [2, 1]},
            "y": {"text": "a dog", "objects": []},
            "z": {"text": "the second", "objects": [2]},
        },
        "film": [{"text": "the square", "objects": [1]}, {"text": "it", "objects": [1]}],
    }
    (root / "train/expressions.json").write_text(json.dumps(entries))
    for t, name in enumerate(NAMES):
        if name != "9":
            write_png(root / f"train/masks/a b/{name}.png", numbers(2, t))
        write_png(root / f"train/masks/film/{t:05d}.png", numbers(1, t))
    (root / "test/expressions.json").write_text(json.dumps({"a b": {"x": "both squares"}, "film": ["the square", "it"]}))


def lists(root: Path, change: Callable[[Any], object]) -> None:
    path = root / "train/expressions.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first(root: Path, change: Callable[[Any], object]) -> None:
    """Change the first expression of video "a b"."""
    lists(root, lambda v: change(v["a b"]["x"]))


def frame(root: Path, name: str) -> Path:
    return root / "train/videos/a b" / name


def mask(root: Path, name: str = "2") -> Path:
    return root / f"train/masks/a b/{name}.png"


def number_from_1(root: Path) -> None:
    """Masks of a film as `ffmpeg -i film.mp4 %05d.png` names its frames."""
    folder = root / "train/masks/film"
    for t in (2, 1, 0):
        (folder / f"{t:05d}.png").rename(folder / f"{t + 1:05d}.png")
