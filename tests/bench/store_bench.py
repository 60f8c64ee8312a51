"""The store beside SOLA's released file layout: the same real tracks in both, read in turn in one run.

Tracks: OSVOS's masks of DAVIS-2017 videos, repeated with shifts to 64 per video. SOLA's layout: one indented JSON of RLE
and one .npy of tokens per track, all of which its dataset class reads for every sample (video x expression). The
JSON's structure is an approximation (a list of COCO RLE), written without its texts; labels "on pixels" stand for its
function, measured on 4 of the 64 tracks and scaled.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.overlap import count_overlap, iou, precision, recall
from rvos_cache.store import CacheWriter, Card, TrackCache, TrackRecord, write_tracks
from rvos_cache.types import Expression, GroundTruth, TrackSet

TRACKS, CHANNELS, VIDEOS = 64, 256, ("dog", "blackswan", "libby")


def load(root: Path, video: str) -> tuple[tuple[str, ...], RleMasks]:
    """Frame names and the masks of all objects of `video`."""
    meta = json.loads((root / "valid_u/meta_expressions.json").read_text())["videos"][video]
    held = json.loads((root / "valid_u/mask_dict.json").read_text())
    keys = sorted({str(a) for e in meta["expressions"].values() for a in e["anno_id"]})
    size = tuple(next(r for r in held[keys[0]] if r)["size"])
    rows = [[from_coco(r, size, k) for r in held[k]] for k in keys]
    return tuple(meta["frames"]), RleMasks.from_bytes(rows, len(rows[0]), size)


def repeated(masks: RleMasks) -> RleMasks:
    """64 tracks: the given ones, shifted by 3 pixels more each time."""
    dense = masks.dense()
    parts = [RleMasks.from_dense(np.roll(dense[[i % len(dense)]], (i, 3 * i), (2, 3))) for i in range(TRACKS)]
    return RleMasks.concatenate(parts)


def write_sola(folder: Path, masks: RleMasks, tokens: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for n in range(masks.shape[0]):
        row = [{"size": list(masks.size), "counts": masks.bytes_at(n, t).decode()} for t in range(masks.shape[1])]
        (folder / f"{n}.json").write_text(json.dumps(row, indent=4))
        np.save(folder / f"{n}.npy", tokens[n].astype(np.float32))


def read_sola(folder: Path) -> np.ndarray:
    for n in range(TRACKS):
        json.loads((folder / f"{n}.json").read_text())
    return np.stack([np.load(folder / f"{n}.npy") for n in range(TRACKS)])


def rate(steps: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Calls per second of each step; the steps take turns."""
    spent = dict.fromkeys(steps, 0.0)
    for i in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step(i % len(VIDEOS))
            spent[name] += time.perf_counter() - start
    return {name: rounds / seconds for name, seconds in spent.items()}


def dense_labels(masks: RleMasks, truth: RleMasks) -> np.ndarray:
    """IoU, precision and recall on pixels, a pair at a time, as the released function does."""
    out = np.zeros((masks.shape[0], truth.shape[0], masks.shape[1], 3))
    for n, a, t in np.ndindex(out.shape[:3]):
        x, y = masks.decode(n, t), truth.decode(a, t)
        shared = (x & y).sum()
        out[n, a, t] = shared / max((x | y).sum(), 1), shared / max(x.sum(), 1), shared / max(y.sum(), 1)
    return out


def rows(data: Path, work: Path) -> list[tuple[str, float, float]]:
    """(measure, SOLA's layout, ours)."""
    writer = CacheWriter(work / "c.zarr", Card(kind="tracks", dataset="mevis", split="v", producer="osvos", channels=CHANNELS))
    kept, masks, truths = {}, {}, {}
    for video in VIDEOS:
        names, truth = load(data / "mevis-davis", video)
        _, found = load(data / "davis17-osvos-tracks", video)
        masks[video], truths[video] = (
            repeated(found),
            GroundTruth(tuple(map(str, range(truth.shape[0]))), truth, np.ones(len(names), bool)),
        )
        shape = (TRACKS, len(names), CHANNELS)
        kept[video] = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
        zeros = np.zeros(TRACKS, np.int32)
        tracks = TrackSet(
            kept[video], np.ones(shape[:2], np.float16), masks[video], zeros - 1, ("flow",) * TRACKS, zeros,
            np.zeros((TRACKS, 4), np.float32),
        )  # fmt: skip
        overlap = count_overlap(masks[video], truths[video])
        sentence = (Expression(video, "0", "a thing", ("0",)),)
        write_tracks(writer, TrackRecord(video, names, truth.size, sentence, tracks, truths[video], overlap))
        write_sola(work / "sola" / video, masks[video], kept[video])
    cache, folders = TrackCache(work / "c.zarr"), [work / "sola" / v for v in VIDEOS]
    for video in VIDEOS:
        assert np.array_equal(cache.tokens(video), kept[video])
    speed = rate(
        {
            "sola": lambda i: read_sola(folders[i]),
            "reopened": lambda i: TrackCache(work / "c.zarr").tokens(VIDEOS[i]),
            "cached": lambda i: cache.tokens(VIDEOS[i]),
            "memory": lambda i: kept[VIDEOS[i]],
            "3 masks, sola": lambda i: RleMasks.from_bytes(
                [[r["counts"].encode() for r in json.loads((folders[i] / f"{n}.json").read_text())] for n in range(3)],
                masks[VIDEOS[i]].shape[1], masks[VIDEOS[i]].size,
            ).union(),
            "3 masks": lambda i: cache.masks(VIDEOS[i]).union(range(3)),
        },
        6,
    )  # fmt: skip
    video, start = VIDEOS[0], time.perf_counter()
    counts = count_overlap(masks[video], truths[video])
    _ = iou(counts), precision(counts), recall(counts)
    ours, start = time.perf_counter() - start, time.perf_counter()
    dense_labels(masks[video].select(range(4)), truths[video].masks)
    theirs = (time.perf_counter() - start) * TRACKS / 4
    files = {name: [p for p in (work / name).rglob("*") if p.is_file()] for name in ("sola", "c.zarr")}
    size = {name: float(sum(p.stat().st_size for p in held)) for name, held in files.items()}
    return [
        *((f"samples/s, {name}", speed["sola"], speed[name]) for name in ("reopened", "cached", "memory")),
        ("bytes on disk", size["sola"], size["c.zarr"]),
        ("files", float(len(files["sola"])), float(len(files["c.zarr"]))),
        ("unions of 3 tracks/s", speed["3 masks, sola"], speed["3 masks"]),
        ("labels of a video, s (pixels, 4 of 64 tracks scaled)", theirs, ours),
    ]


def main(data: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        for name, theirs, ours in rows(data, Path(work)):
            ratio = ours / theirs if "/s" in name else theirs / ours
            sys.stdout.write(f"{name:56s} SOLA {theirs:14.2f}   store {ours:14.2f}   {ratio:10.1f} x\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
