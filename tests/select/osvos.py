"""OSVOS's real tracks of ten DAVIS-2017 videos as a cache, and selections that answer MeViS-like expressions with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.mevis import Mevis
from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, SelectionRecord, TrackRecord, write_selections, write_tracks
from rvos_cache.types import Selection, TrackSet


@dataclass(frozen=True)
class Osvos:
    """Where they lie; root: the expressions and the real masks in MeViS's layout, split valid_u."""

    root: Path
    cache: Path
    selections: Path


def write_osvos(data: Path, out: Path, copies: int = 1, videos: tuple[str, ...] = ()) -> Osvos:
    """An expression's objects are answered by their tracks. copies: how often each expression is repeated.

    A video's repeated expressions are answered in turn by the expression's own objects and by the video's other choices.
    videos: only these.
    """
    root = data / "mevis-davis"
    tracked: dict[str, Any] = json.loads((data / "davis17-osvos-tracks/valid_u/mask_dict.json").read_text())
    listed = json.loads((data / "davis17-osvos-tracks/valid_u/meta_expressions.json").read_text())["videos"]
    if copies > 1:
        root = _repeated(root, out / "data", copies)
    dataset = Mevis(root, "valid_u")
    card = Card(kind="tracks", dataset="mevis", split="valid_u", producer="osvos", channels=1, root=str(root))
    tracks_into = CacheWriter(out / "c.zarr", card)
    card = card.model_copy(update={"kind": "selections", "producer": "run", "extra": {"threshold": 0.5}})
    said_into = CacheWriter(out / "s.zarr", card)
    for video_id in videos or dataset.video_ids():
        video, truth, expressions = dataset.video(video_id), dataset.ground_truth(video_id), dataset.expressions(video_id)
        assert truth is not None
        # Both files name a video's objects in the same order, under other numbers.
        own = sorted({int(o) for o in truth.object_ids})
        theirs = sorted({i for e in listed[video_id]["expressions"].values() for i in e["anno_id"]})
        assert len(own) == len(theirs)
        rows = [[from_coco(r, video.size, f"osvos {i}") for r in tracked[str(i)]] for i in theirs]
        masks, n = RleMasks.from_bytes(rows, len(video), video.size), len(own)
        track_set = TrackSet(
            np.zeros((n, len(video), 1), np.float16), np.ones((n, len(video)), np.float16), masks, np.full(n, -1, np.int32),
            ("osvos",) * n, np.zeros(n, np.int32), np.zeros((n, 4), np.float32),
        )  # fmt: skip
        write_tracks(
            tracks_into,
            TrackRecord(video_id, video.frame_names, video.size, expressions, track_set, truth, count_overlap(masks, truth)),
        )
        choices = list(dict.fromkeys(e.targets for e in expressions))
        answers = []
        for i, e in enumerate(expressions):
            targets = e.targets if i % 2 == 0 or copies == 1 else choices[i // 2 % len(choices)]
            scores = np.array([0.9 if str(o) in (targets or ()) else 0.1 for o in own], np.float32)
            answers.append(Selection(e.expression_id, scores, np.ones(n, bool)))
        write_selections(said_into, SelectionRecord(video_id, video.frame_names, video.size, tuple(answers)))
    return Osvos(root, tracks_into.path, said_into.path)


def _repeated(root: Path, out: Path, copies: int) -> Path:
    (out / "valid_u").mkdir(parents=True)
    for name in ("JPEGImages", "mask_dict.json"):
        (out / "valid_u" / name).symlink_to((root / "valid_u" / name).resolve())
    content = json.loads((root / "valid_u/meta_expressions.json").read_text())
    for entry in content["videos"].values():
        expressions = list(entry["expressions"].values())
        entry["expressions"] = {str(i): e for i, e in enumerate(expressions * copies)}
    (out / "valid_u/meta_expressions.json").write_text(json.dumps(content))
    return out
