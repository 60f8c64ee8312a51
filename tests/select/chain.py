"""A split of two small videos in MeViS's layout, its tracks cache, and selections: what merge and evaluate are tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, SelectionRecord, TrackRecord, digest, write_selections, write_tracks
from rvos_cache.types import Expression, GroundTruth, Selection, TrackSet

SIZE, FRAMES = (24, 32), 3
NAMES = tuple(f"{t:05d}" for t in range(FRAMES))
EXPRESSIONS = {"a": {"0": ["1"], "1": ["1", "2"], "2": []}, "b": {"0": ["3"]}}


def truth_masks(objects: int) -> np.ndarray:
    """(A, T, H, W): squares that move right, one below the other."""
    masks = np.zeros((objects, FRAMES, *SIZE), bool)
    for a in range(objects):
        for t in range(FRAMES):
            masks[a, t, 2 + 10 * a : 9 + 10 * a, 3 + 2 * t : 11 + 2 * t] = True
    return masks


TEXTS: dict[tuple[str, str], str] = {}
"""Video and expression -> another sentence than `text_of` makes."""


def text_of(video: str, expression_id: str) -> str:
    return TEXTS.get((video, expression_id), f"thing {expression_id}")


def objects_of(video: str) -> tuple[str, ...]:
    return ("1", "2") if video == "a" else ("3",)


def write_split(root: Path, split: str = "valid_u") -> Path:
    """The two videos with frames, expressions and masks; returns `root`."""
    videos, annotations = {}, {}
    for video, expressions in EXPRESSIONS.items():
        folder = root / split / "JPEGImages" / video
        folder.mkdir(parents=True)
        for name in NAMES:
            cv2.imwrite(str(folder / f"{name}.jpg"), np.zeros((*SIZE, 3), np.uint8))
        listed = {
            e: {
                "exp": text_of(video, e),
                "obj_id": [0],
                "anno_id": [int(i) for i in ids],
                "kind": "motion" if e == "0" else "static",
            }
            for e, ids in expressions.items()
        }
        videos[video] = {"vid_id": len(videos), "frames": list(NAMES), "expressions": listed}
        masks = RleMasks.from_dense(truth_masks(len(objects_of(video))))
        for a, name in enumerate(objects_of(video)):
            row = [masks.bytes_at(a, t).decode() for t in range(FRAMES)]
            annotations[name] = [{"size": list(SIZE), "counts": counts} for counts in row]
    (root / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (root / split / "mask_dict.json").write_text(json.dumps(annotations))
    return root


def write_cache(
    path: Path, root: Path | str = "", training_only: bool = False, videos: tuple[str, ...] = ("a", "b"), thin: bool = False
) -> Path:
    """Tracks: each object exactly, then each object shifted down by two pixels, then one no expression but "1" may choose.

    thin: all but the last have every fourth column of their object alone.
    """
    card = Card(
        kind="tracks", dataset="mevis", split="valid_u", producer="flow", channels=4, root=str(root), training_only=training_only
    )
    writer = CacheWriter(path, card)
    for video in videos:
        masks = truth_masks(len(objects_of(video)))
        tracks = np.concatenate([masks, np.roll(masks, 2, 2), masks[:1]])
        if thin:
            tracks[:-1, ..., np.arange(SIZE[1]) % 4 > 0] = False
        n = len(tracks)
        prompt = np.full(n, -1, np.int32)
        prompt[-1] = min(1, len(EXPRESSIONS[video]) - 1)
        track_set = TrackSet(
            np.zeros((n, FRAMES, 4), np.float16), np.ones((n, FRAMES), np.float16), RleMasks.from_dense(tracks), prompt,
            ("flow",) * n, np.zeros(n, np.int32), np.zeros((n, 4), np.float32),
        )  # fmt: skip
        expressions = tuple(Expression(video, e, text_of(video, e), tuple(ids)) for e, ids in EXPRESSIONS[video].items())
        truth = GroundTruth(objects_of(video), RleMasks.from_dense(masks), np.ones(FRAMES, bool))
        write_tracks(
            writer, TrackRecord(video, NAMES, SIZE, expressions, track_set, truth, count_overlap(track_set.masks, truth))
        )
    return path


WEIGHTS = {"best": digest(b"weights")}
"""The weights of the run that `write_run` makes, as the card of its selections has them."""


def write_run(folder: Path) -> Path:
    """What report reads of a run: its settings, and a best module that cannot be loaded."""
    (folder / "best").mkdir(parents=True)
    (folder / "best/model.safetensors").write_bytes(b"weights")
    cards = {"tracks": [{"dataset": "mevis", "split": "train", "producer": "flow"}], "text": [{"producer": "hashed"}]}
    (folder / "settings.json").write_text(json.dumps({"settings": {"selector": "sola"}, "cards": cards, "commit": ""}))
    return folder


def write_perfect(
    path: Path,
    cache: Path,
    videos: tuple[str, ...] = ("a", "b"),
    threshold: float = 0.5,
    copies: int = 1,
    producer: str = "run",
    empty: str | None = None,
    weights: Mapping[str, str] | None = None,
) -> Path:
    """Selections that score exactly the expression's own objects 0.9, the rest 0.1. copies: caches that are joined.

    empty: what the card says of an empty choice; None: nothing, as cards of older code.
    """
    card = Card(
        kind="selections", dataset="mevis", split="valid_u", producer=producer, weights=dict(weights or {}),
        extra={"run": "run", "caches": [str(cache)], "threshold": threshold, **({} if empty is None else {"empty": empty})},
    )  # fmt: skip
    writer = CacheWriter(path, card)
    for video in videos:
        objects = objects_of(video)
        n = copies * (2 * len(objects) + 1)
        selections = []
        for e, ids in EXPRESSIONS[video].items():
            scores = np.full(n, 0.1, np.float32)
            scores[[objects.index(i) for i in ids]] = 0.9
            candidates = np.ones(n, bool)
            candidates[-1] = e == "1"
            selections.append(Selection(e, scores, candidates))
        write_selections(writer, SelectionRecord(video, NAMES, SIZE, tuple(selections)))
    return path
