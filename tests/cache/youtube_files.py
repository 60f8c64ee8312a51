"""Ref-YouTube-VOS on disk: two annotated videos, and how to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rvos_cache.datasets.ref_youtube_vos import is_held_out

SIZE = (8, 12)
NAMES = ("00000", "00005", "00010")
HELD_OUT = next(name for name in map("v{}".format, count()) if is_held_out(name))


def write_frames(root: Path, split: str, video: str, names: tuple[str, ...] = NAMES) -> None:
    """Write a folder of grey frames, each of another grey."""
    folder = root / split / "JPEGImages" / video
    folder.mkdir(parents=True)
    for t, name in enumerate(names):
        Image.fromarray(np.full((*SIZE, 3), 10 * t + 20, np.uint8)).save(folder / f"{name}.jpg")


def numbers(objects: int, t: int) -> np.ndarray:
    """Object n is a 2x2 square in column 3 n of row t."""
    pixels = np.zeros(SIZE, np.uint8)
    for number in range(1, objects + 1):
        pixels[t : t + 2, 3 * number - 2 : 3 * number] = number
    return pixels


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels, "P")
    image.putpalette([*range(256)] * 3)
    image.save(path)


def write_list(root: Path, split: str, videos: Mapping[str, Any], names: tuple[str, ...] = NAMES) -> None:
    """videos: video -> expressions."""
    path = root / "meta_expressions" / split / "meta_expressions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"videos": {v: {"expressions": expressions, "frames": names} for v, expressions in videos.items()}})
    )


def write_youtube(root: Path) -> None:
    """train: two videos; the first has two objects and a frame that is not annotated, the second is held out. valid: two, one of
    which is in test."""
    objects_of = {"a": {"0": "1", "1": "2", "2": "1"}, HELD_OUT: {"0": "1"}}
    write_list(
        root, "train", {v: {i: {"exp": f"object {o}", "obj_id": o} for i, o in ids.items()} for v, ids in objects_of.items()}
    )
    meta: dict[str, Any] = {}
    for video, objects in (("a", 2), (HELD_OUT, 1)):
        write_frames(root, "train", video)
        listed = [(t, name) for t, name in enumerate(NAMES) if video != "a" or t != 1]
        for t, name in listed:
            write_png(root / "train/Annotations" / video / f"{name}.png", numbers(objects, t))
        meta[video] = {
            "objects": {str(n): {"category": "square", "frames": [m for _, m in listed]} for n in range(1, objects + 1)}
        }
    (root / "train/meta.json").write_text(json.dumps({"videos": meta}))
    write_list(root, "valid", {v: {"0": {"exp": "the square"}, "1": {"exp": "it"}} for v in ("c", "d")})
    write_list(root, "test", {"d": {"0": {"exp": "the square"}}})
    for video in ("c", "d"):
        write_frames(root, "valid", video)


def white_is_0(path: Path) -> None:
    image = Image.fromarray((numbers(1, 0) == 0).astype(np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)


def edited(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content["videos"])
    path.write_text(json.dumps(content))


def meta(root: Path, change: Callable[[Any], object], split: str = "train") -> None:
    edited(root / "meta_expressions" / split / "meta_expressions.json", change)


def annotation(root: Path, name: str = "00000") -> Path:
    return root / f"train/Annotations/a/{name}.png"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])
