"""Caches of three objects and their exact tracks, and runs that are trained on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, TextRecord, TrackRecord, write_text, write_tracks
from rvos_cache.types import Expression, GroundTruth, TrackSet, Words
from rvos_select.training.settings import TrainSettings
from rvos_select.training.train import train

SIZE, FRAMES, TRACKS = (8, 12), 3, 3


def write(
    folder: Path, split: str, videos: list[str], hidden: bool = False, only: bool = False, dataset: str = "tiny",
    narrow: bool = False, said_by: dict[str, object] | None = None, **card: object,
) -> tuple[Path, Path]:  # fmt: skip
    """Three tracks that are the three objects, or with narrow two thirds of each; expression k names object k, one names none.

    card, said_by: fields of the cards of tracks and words.
    """
    tracks, text = folder / split / "flow.zarr", folder / split / "text-hashed.zarr"
    shared = {"dataset": dataset, "split": split}
    of = {"producer": "flow", "channels": 8, "label_iou": 0.5, "training_only": only, **card}
    track_writer = CacheWriter(tracks, Card(kind="tracks", **of, **shared))
    text_writer = CacheWriter(text, Card(kind="text", **{"producer": "hashed", "channels": 8, **(said_by or {})}, **shared))
    dense = np.zeros((TRACKS, FRAMES, *SIZE), bool)
    for k in range(TRACKS):
        dense[k, :, 2:6, 4 * k : 4 * k + 3] = True
    truth = GroundTruth(("a", "b", "c"), RleMasks.from_dense(dense), np.ones(FRAMES, bool))
    if narrow:
        dense[..., 2::4] = False
    masks = RleMasks.from_dense(dense)
    for number, video in enumerate(videos):
        noise = np.random.default_rng(number).normal(0, 0.05, (TRACKS, FRAMES, 8))
        tokens = (noise + np.eye(TRACKS, 8)[:, None]).astype(np.float16)
        named = [("a",), ("b",), ("c",), ()]
        expressions = tuple(
            Expression(video, str(i), f"number {i}", None if hidden else targets) for i, targets in enumerate(named)
        )
        zeros = np.zeros(TRACKS, np.int32)
        track_set = TrackSet(tokens, np.ones((TRACKS, FRAMES), np.float16), masks, zeros - 1, ("flow",) * TRACKS, zeros,
                             np.zeros((TRACKS, 4), np.float32))  # fmt: skip
        answers = (None, None) if hidden else (truth, count_overlap(masks, truth))
        names = tuple(f"{t:05d}" for t in range(FRAMES))
        write_tracks(track_writer, TrackRecord(video, names, SIZE, expressions, track_set, *answers))
        words = tuple(Words(np.eye(4, 8)[i : i + 1].astype(np.float16), np.zeros((1, 2), np.int32), ("",)) for i in range(4))
        write_text(text_writer, TextRecord(video, expressions, words))
    return tracks, text


def settings(**values: object) -> TrainSettings:
    small = {"word_channels": 8, "width": 16, "layers": 1, "heads": 2, "negatives": 2}
    base = {"config": small, "optim": {"lr": 3e-3}, "epochs": 3, "batch": "video"}
    return TrainSettings.model_validate({**base, **values})


def run(caches: tuple[Path, ...], out: Path, resume: bool = False, **values: object) -> Path:
    a, b, c, d = caches
    return train([a], [b], settings=settings(**values), valid_tracks=[c], valid_texts=[d], out=out, resume=resume)


def numbers(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
