"""The store beside SOLA's released file layout: the same tracks in both, read in turn in one run, all from the page cache.

Tracks: the 16 objects that OSVOS followed in ten DAVIS-2017 videos, as they are and mirrored three ways: 64 real tracks, no
two with the same bytes (shifted copies of a few would be packed into almost nothing). SOLA's side follows its code
(github.com/cvlab-kaist/SOLA, 76f87be): `generate_tokens_grid.py` writes an indented JSON (RLE, prompt, IoU, precision and
recall with each object) and a .npy of float32 tokens per track, and its labels are `compute_mask_metrics` of float masks
that were resized to 540x960; `dataloader.py` reads all JSONs and .npys for every sample, and for the masks of a selection
the JSONs of the chosen tracks, decoded and stacked track by track. It stores no words: its loop encodes them for every sample.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco

from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.overlap import count_overlap, frame_mean, iou, precision, recall
from rvos_cache.store import CacheWriter, Card, TextCache, TextRecord, TrackCache, TrackRecord, write_text, write_tracks
from rvos_cache.types import Expression, GroundTruth, Overlap, TrackSet, Words

TRACKS, CHANNELS, FRAMES, VIDEOS = 64, 256, 40, ("dog", "blackswan", "libby")
EXPRESSIONS, WORDS, WORD_CHANNELS = 14, 12, 1024
ROUNDS, LABELLED = 7, 4


def load(root: Path, video: str) -> RleMasks:
    """The masks of all objects of `video` in its first 40 frames."""
    meta = json.loads((root / "valid_u/meta_expressions.json").read_text())["videos"][video]
    mask_dict = json.loads((root / "valid_u/mask_dict.json").read_text())
    keys = sorted({str(a) for e in meta["expressions"].values() for a in e["anno_id"]})
    size = tuple(next(r for r in mask_dict[keys[0]] if r)["size"])
    rows = [[from_coco(r, size, k) for r in mask_dict[k][:FRAMES]] for k in keys]
    return RleMasks.from_bytes(rows, FRAMES, size)


def real_tracks(root: Path) -> RleMasks:
    """64 tracks: every object of every video, and its mirror images."""
    videos = json.loads((root / "valid_u/meta_expressions.json").read_text())["videos"]
    masks = RleMasks.concatenate([load(root, video) for video in videos])
    parts = []
    for k in range(masks.shape[0]):
        dense = masks.dense([k])
        parts += [RleMasks.from_dense(m) for m in (dense, dense[..., ::-1], dense[..., ::-1, :], dense[..., ::-1, ::-1])]
    out = RleMasks.concatenate(parts)
    assert out.shape[0] == TRACKS
    return out


def write_sola(folder: Path, masks: RleMasks, tokens: np.ndarray, overlap: Overlap) -> None:
    for name in ("sam2_masklets", "sam2_object_tokens"):
        (folder / name).mkdir(parents=True)
    labels = {"precision": precision(overlap), "recall": recall(overlap), "iou": iou(overlap)}
    for n in range(masks.shape[0]):
        row = [{"size": list(masks.size), "counts": masks.bytes_at(n, t).decode()} for t in range(masks.shape[1])]
        record = {"anno_id": n, "rle": row, "prompt_type": "SAM2 AMG MASK"}
        record |= {
            name: {str(a): float(x) for a, x in enumerate(frame_mean(v, overlap.annotated)[n])} for name, v in labels.items()
        }
        (folder / "sam2_masklets" / f"{n:05d}.json").write_text(json.dumps(record, indent=4))
        np.save(folder / "sam2_object_tokens" / f"{n:05d}.npy", tokens[n].astype(np.float32))


def read_masklet(folder: Path, n: int) -> dict[str, Any]:
    return dict(json.loads((folder / "sam2_masklets" / f"{n:05d}.json").read_text()))


def read_sola(folder: Path) -> np.ndarray:
    for n in range(TRACKS):
        read_masklet(folder, n)
    return np.stack([np.load(folder / "sam2_object_tokens" / f"{n:05d}.npy") for n in range(TRACKS)])


def union_sola(folder: Path) -> list[np.ndarray]:
    """Row-major pixels, as a picture is written, of the OR of three tracks, frame by frame. Only their JSONs are parsed."""
    merged: np.ndarray | None = None
    for n in range(3):
        pixels = np.stack([coco.decode(rle) for rle in read_masklet(folder, n)["rle"]])
        merged = pixels if merged is None else np.logical_or(merged, pixels)
    assert merged is not None
    return [np.ascontiguousarray(frame) for frame in merged]


def union_store(cache: TrackCache, video: str) -> Iterator[np.ndarray]:
    """The same frame by frame, as `merge` writes them."""
    runs = cache.runs(video, range(3))
    return (runs.union(t) for t in range(runs.shape[1]))


def resized(pixels: torch.Tensor) -> torch.Tensor:
    """Masks (T, H, W) float as the released code compares them, (T, 540, 960) float."""
    return (torch.nn.functional.interpolate(pixels[None], size=(540, 960), mode="bilinear")[0] > 0.5).float()


def labels_on_pixels(masks: list[torch.Tensor], truth: list[torch.Tensor]) -> None:
    """IoU, precision and recall a pair of frames at a time, as the released function does."""
    for one in masks:
        for other in truth:
            for x, y in zip(one, other):
                shared = (x * y).sum().item()
                union = (x + y).sum().item() - shared
                _ = shared / max(union, 1), shared / max(x.sum().item(), 1), shared / max(y.sum().item(), 1)


def labels_from_counts(masks: RleMasks, truth: GroundTruth) -> None:
    counts = count_overlap(masks, truth)
    _ = iou(counts), precision(counts), recall(counts)


def sample(tracks: TrackCache, text: TextCache, video: str) -> None:
    tracks.tokens(video)
    tracks.presence(video)
    iou(tracks.overlap(video))
    text.words(video)


def seconds(steps: dict[str, Callable[[str], object]], rounds: int) -> dict[str, float]:
    """Median seconds of a call of each step; the steps take turns."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds * len(VIDEOS)):
        for name, step in steps.items():
            start = time.perf_counter()
            step(VIDEOS[i % len(VIDEOS)])
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


@dataclass(frozen=True)
class Row:
    """A measure of both layouts, how many times better the store is, and STORE.md's goal for that."""

    name: str
    sola: float
    store: float
    times: float
    goal: float | None


def prepare(data: Path, work: Path) -> tuple[RleMasks, dict[str, GroundTruth], dict[str, np.ndarray]]:
    """Write both layouts; tracks, ground truth and tokens of the videos."""
    base = Card(kind="tracks", dataset="mevis", split="v", producer="osvos", channels=CHANNELS)
    into = CacheWriter(work / "tracks.zarr", base)
    words_into = CacheWriter(work / "text.zarr", base.model_copy(update={"kind": "text", "channels": WORD_CHANNELS}))
    masks, truths, tokens, rng = real_tracks(data / "davis17-osvos-tracks"), {}, {}, np.random.default_rng(0)
    spans, tags = np.zeros((WORDS, 2), np.int32), ("NN",) * WORDS
    for video in VIDEOS:
        objects = load(data / "mevis-davis", video)
        ids = tuple(map(str, range(objects.shape[0])))
        truths[video] = GroundTruth(ids, objects, np.ones(FRAMES, bool))
        tokens[video] = rng.standard_normal((TRACKS, FRAMES, CHANNELS)).astype(np.float16)
        zeros = np.zeros(TRACKS, np.int32)
        tracks = TrackSet(
            tokens[video], rng.random((TRACKS, FRAMES)).astype(np.float16), masks, zeros - 1, ("grid",) * TRACKS,
            rng.integers(0, FRAMES, TRACKS).astype(np.int32), (rng.random((TRACKS, 4)) * 480).astype(np.float32),
        )  # fmt: skip
        expressions = tuple(
            Expression(video, str(e), "the thing that moves from left to right", ("0",)) for e in range(EXPRESSIONS)
        )
        names = tuple(f"{t:05d}" for t in range(FRAMES))
        overlap = count_overlap(masks, truths[video])
        write_tracks(into, TrackRecord(video, names, masks.size, expressions, tracks, truths[video], overlap))
        vectors = rng.standard_normal((EXPRESSIONS, WORDS, WORD_CHANNELS)).astype(np.float16)
        write_text(words_into, TextRecord(video, expressions, tuple(Words(v, spans, tags) for v in vectors)))
        write_sola(work / "sola" / video, masks, tokens[video], overlap)
    return masks, truths, tokens


def read_rows(work: Path, masks: RleMasks, truths: dict[str, GroundTruth], tokens: dict[str, np.ndarray]) -> list[Row]:
    cache, text = TrackCache(work / "tracks.zarr"), TextCache(work / "text.zarr")
    for video in VIDEOS:
        assert np.array_equal(cache.tokens(video), tokens[video]) and cache.masks(video) == masks
        assert np.array_equal(np.stack(list(union_store(cache, video))), union_sola(work / "sola" / video))
    few = [torch.from_numpy(pixels).float() for pixels in masks.dense(range(0, TRACKS, TRACKS // LABELLED))]
    larger = {v: [resized(torch.from_numpy(pixels).float()) for pixels in truths[v].masks.dense()] for v in VIDEOS}
    plain = {v: [torch.from_numpy(pixels).float() for pixels in truths[v].masks.dense()] for v in VIDEOS}
    took = seconds(
        {
            "sola": lambda v: read_sola(work / "sola" / v),
            "reopened": lambda v: TrackCache(work / "tracks.zarr").tokens(v),
            "cached": cache.tokens,
            "sample": lambda v: sample(cache, text, v),
            "memory": tokens.__getitem__,
            "union, sola": lambda v: union_sola(work / "sola" / v),
            "union": lambda v: deque(union_store(cache, v), maxlen=0),
        },
        ROUNDS,
    )
    took |= seconds(
        {
            "labels, sola": lambda v: labels_on_pixels([resized(m) for m in few], larger[v]),
            "labels, not resized": lambda v: labels_on_pixels(few, plain[v]),
            "labels": lambda v: labels_from_counts(masks, truths[v]),
        },
        ROUNDS,
    )
    for name in ("labels, sola", "labels, not resized"):
        took[name] *= TRACKS / LABELLED

    def row(name: str, theirs: str, ours: str, goal: float | None) -> Row:
        return Row(name, took[theirs] * 1e3, took[ours] * 1e3, took[theirs] / took[ours], goal)

    return [
        row("tokens of a video: cache reopened each time, ms", "sola", "reopened", 4.5),
        row("tokens of a video: handles cached, ms", "sola", "cached", 12),
        row("tokens of a video: from memory, ms", "sola", "memory", 300),
        row("tokens, presence, labels, words: handles cached, ms", "sola", "sample", None),
        row("masks of 3 tracks, OR-ed to pixels (SOLA: 3 JSONs), ms", "union, sola", "union", 4),
        row(f"labels of a video on a core (SOLA: {LABELLED} tracks, scaled), ms", "labels, sola", "labels", 100),
        row("the same without SOLA's resizing, ms", "labels, not resized", "labels", None),
    ]


def disk_rows(work: Path) -> list[Row]:
    def held(*names: str) -> list[int]:
        return [p.stat().st_size for name in names for p in sorted(work.glob(name)) if p.is_file()]

    def row(name: str, theirs: float, ours: float, goal: float | None) -> Row:
        return Row(name, theirs / len(VIDEOS), ours / len(VIDEOS), theirs / ours, goal)

    sola, tracks, text = held("sola/**/*"), held("tracks.zarr/**/*"), held("text.zarr/**/*")
    packed = held("tracks.zarr/videos/*/mask_*/**/*")
    return [
        row("kB per video, words of 14 expressions included", sum(sola) / 1e3, (sum(tracks) + sum(text)) / 1e3, 2),
        row("kB per video, tracks alone", sum(sola) / 1e3, sum(tracks) / 1e3, None),
        row("kB of masks per video", sum(held("sola/*/*/*.json")) / 1e3, sum(packed) / 1e3, 3.5),
        row("files per video, tracks alone", len(sola), len(tracks), 10),
        row("files per video, words included", len(sola), len(tracks) + len(text), None),
    ]


def main(data: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepared = prepare(data, work)
        rows = [*read_rows(work, *prepared), *disk_rows(work)]
    out = [
        f"{TRACKS} tracks, {FRAMES} frames of 480x854, {EXPRESSIONS} expressions; medians of {ROUNDS * len(VIDEOS)} calls, "
        "layouts in turn, files in the page cache",
        f"{'':58s} {'SOLA':>11s} {'store':>11s} {'times':>9s} {'goal':>6s}",
    ]
    for r in rows:
        verdict = "" if r.goal is None else "met" if r.times >= r.goal else "missed"
        goal = "" if r.goal is None else f"{r.goal:g}"
        out.append(f"{r.name:58s} {r.sola:11.4g} {r.store:11.4g} {r.times:9.1f} {goal:>6s} {verdict}")
    out.append("false-complete videos in 200 kills: RVOS_KILLS=200 pytest tests/cache/test_faults.py -k kills (not run here)")
    sys.stdout.write("\n".join(line.rstrip() for line in out) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
