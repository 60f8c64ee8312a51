"""Random records of videos, and a writer of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import (
    CacheWriter,
    Card,
    TrackRecord,
)
from rvos_cache.types import Expression, GroundTruth, TrackSet

SIZE = (6, 7)
FEATURES = [{"name": "map", "dims": ["T", 3], "dtype": "float32", "by_frame": True}]


def writer(path: Path, kind: str = "tracks", **more: object) -> CacheWriter:
    card = {"channels": 4, "feature_specs": FEATURES if kind == "tracks" else [], **more}
    return CacheWriter(path, Card(kind=kind, dataset="d", split="s", producer="p", **card))  # type: ignore[arg-type]


def masks(count: int, frames: int, seed: int = 0) -> RleMasks:
    if count == 0:
        return RleMasks.empty(0, frames, SIZE)
    return RleMasks.from_dense(np.random.default_rng(seed).random((count, frames, *SIZE)) > 0.5)


def record(video: str = "v", n: int = 3, a: int = 2, t: int = 4, hidden: bool = False, seed: int = 0) -> TrackRecord:
    rng, track_masks = np.random.default_rng(seed), masks(n, t, seed)
    tracks = TrackSet(
        tokens=rng.standard_normal((n, t, 4)).astype(np.float16),
        presence=rng.random((n, t)).astype(np.float16),
        masks=track_masks,
        prompt=np.arange(n, dtype=np.int32) % 3 - 1,
        origin=("grid", "box", "gt", "flow")[:n],
        prompt_frame=np.arange(n, dtype=np.int32),
        prompt_box=(rng.random((n, 4)) * 1e3).astype(np.float32),
        features={"map": rng.random((t, 3)).astype(np.float32)},
    )
    truth = GroundTruth(tuple(map(str, range(a))), masks(a, t, seed + 1), np.arange(t) % 2 == 0)
    expressions = (
        Expression(video, "0", "ein Hund", None if hidden else ("0",)),
        Expression(video, "1", "犬", None if hidden else ()),
    )
    names = tuple(f"{i:05d}" for i in range(t))
    ground_truth = (None, None) if hidden else (truth, count_overlap(track_masks, truth))
    return TrackRecord(video, names, SIZE, expressions, tracks, *ground_truth)
