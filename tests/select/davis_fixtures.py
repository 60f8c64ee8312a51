"""A small Ref-DAVIS17 of two videos: its layout, its masks as predictions, and caches of it; some real videos."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.masks import RleMasks
from rvos_cache.media.mask_png import write_mask_png
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, SelectionRecord, TrackRecord, write_selections, write_tracks
from rvos_cache.types import Selection, TrackSet

SIZE, FRAMES = (40, 60), 4
NAMES = tuple(f"{t:05d}" for t in range(FRAMES))


def squares(objects: int, t: int) -> np.ndarray:
    """Object n is a square in the n-th place from the left that moves down."""
    pixels = np.zeros(SIZE, np.uint8)
    for n in range(1, objects + 1):
        pixels[4 + 3 * t : 16 + 3 * t, 18 * n - 15 : 18 * n - 3] = n
    return pixels


def annotation(video: str, t: int) -> np.ndarray:
    """a has three objects, b two and pixels that are not scored; its second object, which is in no list, leaves."""
    pixels = squares(3 if video == "a" else 2, t)
    if video == "b":
        pixels[:, -6:] = 255
        pixels[pixels == 2 * (t > 1)] = 0
    return pixels


NAMED = {"a": 3, "b": 1}


def write_split(root: Path, annotators: int = 4) -> Path:
    videos: dict[str, Any] = {}
    for video, objects in NAMED.items():
        for t, name in enumerate(NAMES):
            for folder, image in (("JPEGImages", Image.new("RGB", SIZE[::-1])), ("Annotations", annotation(video, t))):
                path = root / "valid" / folder / video / f"{name}.{'png' if folder == 'Annotations' else 'jpg'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
        expressions = {
            str(annotators * i + a): {"exp": f"{i} by {a}", "obj_id": str(i + 1)}
            for i in range(objects)
            for a in range(annotators)
        }
        videos[video] = {"frames": list(NAMES), "expressions": expressions}
    listed = root / "meta_expressions/valid/meta_expressions.json"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text(json.dumps({"videos": videos}))
    return root


def write_masks(root: Path, annotators: int = 4, shown: Callable[[str, int], int] = lambda video, number: number) -> Path:
    """The mask of each expression's object, or of the one that `shown` puts in its place (0: none)."""
    for video, objects in NAMED.items():
        for i, a in itertools.product(range(objects), range(annotators)):
            folder = root / video / str(annotators * i + a)
            folder.mkdir(parents=True, exist_ok=True)
            number = shown(video, i + 1)
            for t, name in enumerate(NAMES):
                write_mask_png(folder / f"{name}.png", (annotation(video, t) == number) & (number > 0))
    return root


def write_cache(path: Path, root: Path, videos: Sequence[str] = ("a", "b")) -> Path:
    """Tracks: each object exactly, then the right half of each, then all of them."""
    writer = CacheWriter(
        path, Card(kind="tracks", dataset="ref-davis17", split="valid", producer="flow", channels=2, root=str(root))
    )
    data = RefDavis17(root, "valid")
    for video in videos:
        pixels = np.stack([annotation(video, t) for t in range(FRAMES)])
        masks = np.stack([pixels == n for n in range(1, NAMED[video] + 1)])
        masks = np.concatenate([masks, masks & (np.arange(SIZE[1]) % 18 >= 9), ((pixels > 0) & (pixels < 255))[None]])
        n = len(masks)
        track_set = TrackSet(
            np.zeros((n, FRAMES, 2), np.float16), np.ones((n, FRAMES), np.float16), RleMasks.from_dense(masks),
            np.full(n, -1, np.int32), ("flow",) * n, np.zeros(n, np.int32), np.zeros((n, 4), np.float32),
        )  # fmt: skip
        truth = data.ground_truth(video)
        assert truth is not None
        overlap = count_overlap(track_set.masks, truth)
        write_tracks(writer, TrackRecord(video, NAMES, SIZE, data.expressions(video), track_set, truth, overlap))
    return path


def write_scores(path: Path, scores: Callable[[str, int], np.ndarray], videos: Sequence[str] = ("a", "b")) -> Path:
    """scores(video, object index) of the tracks, by every annotator."""
    writer = CacheWriter(path, Card(kind="selections", dataset="ref-davis17", split="valid", producer="run"))
    for video in videos:
        selections = []
        for i, a in itertools.product(range(NAMED[video]), range(4)):
            of_tracks = np.asarray(scores(video, i), np.float32)
            selections.append(Selection(str(4 * i + a), of_tracks, np.ones(len(of_tracks), bool)))
        write_selections(writer, SelectionRecord(video, NAMES, SIZE, tuple(selections)))
    return path


def right(video: str, i: int) -> np.ndarray:
    out = np.full(2 * NAMED[video] + 1, 0.1)
    out[i] = 0.6
    return out


def real_split(real_data: Path, root: Path, expressions: str, videos: Sequence[str]) -> Path:
    """Some of the real videos. Their link to the frames may be a file that holds its target."""
    source = real_data / "ref-davis17"
    frames = source / "valid/JPEGImages"
    target = frames if frames.is_dir() else source / "valid" / frames.read_text().strip()
    (root / "valid").mkdir(parents=True)
    (root / "valid/JPEGImages").symlink_to(target, target_is_directory=True)
    (root / "valid/Annotations").symlink_to(source / "valid/Annotations", target_is_directory=True)
    listed = json.loads((source / "meta_expressions/valid" / expressions).read_text())["videos"]
    (root / "meta_expressions/valid").mkdir(parents=True)
    (root / "meta_expressions/valid/meta_expressions.json").write_text(json.dumps({"videos": {v: listed[v] for v in videos}}))
    return root
