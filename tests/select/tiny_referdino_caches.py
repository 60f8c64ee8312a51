"""Caches as the tracker `gdino-queries` writes them, of random numbers, and a ReferDINO small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.store import CacheWriter, Card, TextRecord, TrackRecord, write_text, write_tracks
from rvos_cache.trackers.referdino import align
from rvos_cache.types import Expression, FeatureSpec, GroundTruth, TrackSet, Words
from rvos_select.data.caches import TrackSource
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource
from rvos_select.selectors.referdino import ReferDino, ReferDinoConfig

CHANNELS, SIZE = 16, (24, 32)
SMALL: dict[str, Any] = {"token_channels": CHANNELS, "hidden": 24, "temporal_layers": 2, "box_init": "random"}
FEATURES = (
    FeatureSpec("reference", ("N", "T", 4), "float32"),
    FeatureSpec("raw", ("N", "T"), "int16"),
    FeatureSpec("words", ("N", 2), "int32"),
    FeatureSpec("text", ("T", "W", CHANNELS), "float16", by_frame=True),
)
VIDEOS = {"a": (6, 4), "b": (9, 5), "c": (5, 3)}
"""Video -> frames and queries of an expression."""
SENTENCES = (("the dog running left", "0"), ("two cats", "0 1"), ("a black cat that sits down", "1"), ("no bird", ""))
ALPHA = 0.1
PARTS = ("features.reference", "features.words", "features.raw", "frames.text", "overlap", "boxes", "truth")


def referdino(seed: int = 3, **values: Any) -> ReferDino:
    """In evaluation mode, its norms and biases away from 1 and 0."""
    torch.manual_seed(seed)
    model = ReferDino(ReferDinoConfig(**{**SMALL, **values})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_caches(folder: Path, fewer: bool = True, videos: dict[str, tuple[int, int]] = VIDEOS, **card: Any) -> tuple[Path, Path]:
    """A tracks cache and a text cache; their paths. fewer: the second expression of each video has one query less."""
    shared = {"dataset": "tiny", "split": card.pop("split", "train")}
    specs = [spec.to_json() for spec in FEATURES]
    tracks = CacheWriter(
        folder / "tracks.zarr",
        Card(kind="tracks", producer="gdino-queries", channels=CHANNELS, label_iou=0.5, feature_specs=specs, **shared, **card),
    )
    text = CacheWriter(folder / "text.zarr", Card(kind="text", producer="hashed", channels=8, **shared))
    for number, (video, (frames, queries)) in enumerate(videos.items()):
        expressions = tuple(Expression(video, str(i), words, tuple(ids.split())) for i, (words, ids) in enumerate(SENTENCES))
        counts = [queries - (fewer and i == 1) for i in range(len(expressions))]
        track_set, truth = _tracks(np.random.default_rng(number), frames, counts)
        names = tuple(f"{t:05d}" for t in range(frames))
        write_tracks(
            tracks, TrackRecord(video, names, SIZE, expressions, track_set, truth, count_overlap(track_set.masks, truth))
        )
        words = tuple(Words(np.ones((1, 8), np.float16), np.array([[0, 3]], np.int32), ("NN1",)) for _ in expressions)
        write_text(text, TextRecord(video, expressions, words))
    return folder / "tracks.zarr", folder / "text.zarr"


def load_samples(caches: tuple[Path, Path]) -> list[VideoSample]:
    """Every video of the caches that `write_caches` wrote, with all that ReferDINO reads."""
    tracks, texts = TrackSource([caches[0]]), TextSource([caches[1]])
    thresholds = {caches[0].as_posix(): 0.5}
    return [load_video(tracks, texts, v, thresholds=thresholds, requires=PARTS) for v in tracks.video_ids()]


def _tracks(rng: np.random.Generator, frames: int, counts: list[int]) -> tuple[TrackSet, GroundTruth]:
    """Queries that stay alike over the frames but change places, aligned by the released tracker; objects on the two halves."""
    lengths = [len(words.split()) + 2 for words, _ in SENTENCES]
    starts = np.cumsum([0, *lengths])
    text = (0.3 * rng.normal(size=(frames, starts[-1], CHANNELS))).astype(np.float16)
    dense = np.zeros((2, frames, *SIZE), bool)
    dense[0, :, 4:16, 2:14], dense[1, 1:, 6:20, 18:30] = True, True
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("tokens", "raw", "words", "masks", "prompt")}
    for e, count in enumerate(counts):
        own = rng.normal(size=(count, 1, CHANNELS)) + 0.5 * rng.normal(size=(count, frames, CHANNELS)).cumsum(1)
        noise = rng.random((count, 1, *SIZE)) < np.linspace(0.95, 0.3, count)[:, None, None, None]
        masks = dense[rng.integers(0, 2, count)] & noise
        # Each frame has an order of its own; the tracker undoes it as well as it can.
        order = np.stack([rng.permutation(count) for _ in range(frames)], 1)
        own, masks = (np.take_along_axis(x, order.reshape(count, frames, *(1,) * (x.ndim - 2)), 0) for x in (own, masks))
        own = own.astype(np.float16)
        words = text[:, starts[e] : starts[e + 1]]
        places = align(torch.from_numpy(own).transpose(0, 1)[None], torch.from_numpy(words)[None], alpha=ALPHA)
        raw = places[0].T.numpy()
        own, masks = (np.take_along_axis(x, raw.reshape(count, frames, *(1,) * (x.ndim - 2)), 0) for x in (own, masks))
        parts["tokens"].append(own)
        parts["raw"].append(raw.astype(np.int16))
        parts["words"].append(np.tile([starts[e], starts[e + 1]], (count, 1)).astype(np.int32))
        parts["masks"].append(masks)
        parts["prompt"].append(np.full(count, e, np.int32))
    all_parts = {name: np.concatenate(values) for name, values in parts.items()}
    reference = rng.random((sum(counts), frames, 4)).astype(np.float32)
    features = {"reference": reference, "raw": all_parts["raw"], "words": all_parts["words"], "text": text}
    track_set = TrackSet.from_masks(all_parts["tokens"], all_parts["masks"], prompt=all_parts["prompt"], features=features)
    return track_set, GroundTruth(("0", "1"), RleMasks.from_dense(dense), np.arange(frames) < frames - 1)
