"""Writes moving shapes as MeViS lays its data out; the same seed gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rvos_cache.errors import InputError
from rvos_cache.files import write_text
from rvos_cache.masks import RleMasks
from rvos_cache.shapes.language import Sentence, sentences
from rvos_cache.shapes.render import render
from rvos_cache.shapes.scene import Scene, sample_scene

HIDDEN = 4
"""Frames in a row in which an object cannot be seen."""


def make_video(seed: int, split: int, index: int) -> tuple[Scene, list[Any], Any, list[Sentence]]:
    """Scene, T frames (H, W, 3) RGB, visible masks (A, T, H, W) and 8 or more sentences of one video.

    Two videos of every five (by `index`) hide an object for at least HIDDEN frames, whatever the others happen to do.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, index)))
    post = index % 5 in (0, 2)
    while True:
        scene = sample_scene(rng, post)
        frames, masks, visible = render(scene, rng)
        gone = np.lib.stride_tricks.sliding_window_view(~masks.any((2, 3)), HIDDEN, axis=1).all(-1).any()
        said = sentences(rng, scene, visible)
        if (gone or not post) and len(said) >= 8 and bool(((visible > 0.5).mean(1) > 0.35).all()):
            return scene, frames, masks, said


@dataclass(frozen=True)
class Written:
    """What the JSON files say of one video: names of its T frames, sentences, and COCO RLE or None per frame of each object
    that a sentence names (as in MeViS, only these are annotated)."""

    names: list[str]
    said: list[Sentence]
    masks: dict[int, list[dict[str, Any] | None]]


def _write_video(folder: Path, seed: int, split: int, index: int) -> Written:
    """One video's frames under `folder`."""
    _, frames, masks, said = make_video(seed, split, index)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{t:05d}" for t in range(len(frames))]
    for name, frame in zip(names, frames):
        data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (folder / f"{name}.jpg").write_bytes(data.tobytes())
    rles, empty = RleMasks.from_dense(masks), ~masks.any((2, 3))
    size = list(rles.size)
    rows = {
        a: [None if empty[a, t] else {"size": size, "counts": rles.bytes_at(a, t).decode()} for t in range(len(frames))]
        for a in sorted({a for s in said for a in s.targets})
    }
    return Written(names, said, rows)


def _write_json(root: Path, videos: Mapping[str, Written]) -> None:
    """meta_expressions.json and mask_dict.json of a split; annotations are numbered through the whole split."""
    entries: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    for index, (video_id, video) in enumerate(videos.items()):
        number = {a: len(annotations) + i for i, a in enumerate(video.masks)}
        annotations |= {str(number[a]): rows for a, rows in video.masks.items()}
        expressions = {
            str(i): {
                "exp": s.text,
                "obj_id": list(s.targets),
                "anno_id": [number[a] for a in s.targets],
                "kind": s.kind,
                "claim": s.claim,
            }
            for i, s in enumerate(video.said)
        }
        entries[video_id] = {"expressions": expressions, "vid_id": index, "frames": video.names}
    # written last and whole: a split with expressions has all its frames and masks
    for name, value in (("mask_dict", annotations), ("meta_expressions", {"videos": entries})):
        write_text(root / f"{name}.json", json.dumps(value))


def write_shapes(out: Path, videos: int, seed: int, progress: Callable[[int, int], None] | None = None, jobs: int = 1) -> None:
    """Write `videos` videos under `out`: one fifth (at least one) in `valid_u`, the others in `train`.

    progress(done, videos) is called after each; the bytes do not depend on `jobs`, the number of processes. Raises InputError
    for fewer than two videos, or where `out` holds a larger or other data set already.
    """
    if videos < 2 or seed < 0:
        raise InputError(f"moving shapes: wanted 2 videos or more and a seed of 0 or more, got {videos} and {seed}; raise it")
    valid = max(1, videos // 5)
    mark, text = out / "shapes.json", json.dumps({"videos": videos, "seed": seed})
    other = not mark.exists() and any((out / s).exists() for s in ("train", "valid_u"))
    if other or (mark.exists() and mark.read_text() != text):
        raise InputError(f"{out}: it holds other data already; choose an empty folder for moving shapes")
    out.mkdir(parents=True, exist_ok=True)
    write_text(mark, text)
    done = 0
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
        for split, (name, count) in enumerate((("train", videos - valid), ("valid_u", valid))):
            root = out / name
            names = [f"shapes{split}{index:05d}" for index in range(count)]
            folders = [root / "JPEGImages" / video_id for video_id in names]
            each = (pool.map if pool else map)(_write_video, folders, [seed] * count, [split] * count, range(count))
            written = {}
            for video_id, video in zip(names, each):
                written[video_id] = video
                done += 1
                if progress is not None:
                    progress(done, videos)
            _write_json(root, written)
