"""Dataset x tracker -> store, and dataset x text encoder -> store: resume, shards, failures, several processes."""

from __future__ import annotations

import errno
import multiprocessing
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.corruptions import corrupted, parsed
from rvos_cache.datasets import DATASETS, Dataset, open_dataset
from rvos_cache.errors import InputError, naming
from rvos_cache.overlap import count_overlap
from rvos_cache.seams import resolve
from rvos_cache.settings import build
from rvos_cache.store import (
    Cache,
    CacheWriter,
    Card,
    TextCache,
    TextRecord,
    TrackCache,
    TrackRecord,
    canonical,
    digest,
    open_cache,
    place_of,
    provenance,
    write_text,
    write_tracks,
)
from rvos_cache.text import encoder_class
from rvos_cache.trackers import Tracker, tracker_class
from rvos_cache.types import Expression, GroundTruth, Video

FATAL = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM}
"""Faults of the disk, not of a video: the run stops instead of failing every video that is left."""


@dataclass
class ExtractReport:
    """Ids of the videos done now, those that were there before, and the failed ones with their errors."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def expressions_digest(dataset: Dataset) -> str:
    """Digest of the whole split's expressions: ids, texts and targets in file order."""
    listed = [
        [e.video_id, e.expression_id, e.text, e.targets]
        for video_id in dataset.video_ids()
        for e in _expressions(dataset, video_id)
    ]
    return digest(canonical(listed))


def bound_digest(dataset: Dataset, out: Path) -> str:
    """The digest of `expressions_digest`, or that of the cache `out` where all it holds is said the same as now.

    So a video whose sentences were mended, or one that is new, joins the cache that it was missing from.
    Raises InputError for a damaged cache.
    """
    now = expressions_digest(dataset)
    if not place_of(out).has_card():
        return now
    cache = open_cache(out)
    held = cache.card.expressions_digest
    if held in (None, now) or not isinstance(cache, (TextCache, TrackCache)):
        return now
    listed = set(dataset.video_ids())
    for video_id in cache.video_ids():
        stored = cache.expressions(video_id) if isinstance(cache, TextCache) else cache.info(video_id).expressions
        if video_id not in listed or stored != _expressions(dataset, video_id):
            return now
    return held


def at_hand(card: Card) -> Dataset | None:
    """The dataset that a cache was made of, where the hint in its card still leads to it."""
    try:
        return open_dataset(card.dataset, Path(card.root), card.split) if card.root else None
    except InputError:
        return None


def failed_videos(cache: Cache, dataset: Dataset | None = None) -> dict[str, str]:
    """Videos of the split that failed and are still not there, with the error. dataset: default, the one at hand.

    A record of a video that has left the split since is none of them.
    """
    failed = cache.failures()
    if not failed:
        return {}
    known = dataset or at_hand(cache.card)
    listed = failed.keys() if known is None else set(known.video_ids())
    return {video_id: error for video_id, error in failed.items() if video_id in listed}


def extract_video(
    tracker: Tracker, video: Video, expressions: Sequence[Expression], ground_truth: GroundTruth | None
) -> TrackRecord:
    """Tracks of one video and their overlap with its ground truth (None: hidden). The step that `ask` shares."""
    given = ground_truth if tracker.wants_ground_truth else None
    if tracker.wants_ground_truth and given is None:
        raise InputError(f"video {video.video_id}: this tracker prompts with ground truth, and the split hides it")
    tracks = tracker.track(video, expressions, given)
    overlap = None if ground_truth is None else count_overlap(tracks.masks, ground_truth)
    return TrackRecord(video.video_id, video.frame_names, video.size, tuple(expressions), tracks, ground_truth, overlap)


def chosen_videos(dataset: Dataset, videos: Iterable[str], limit: int | None, shard: str) -> list[str]:
    """The videos of a run in file order. shard "i/n" takes every n-th from the i-th. Raises InputError."""
    known = list(dataset.video_ids())
    wanted = list(videos)
    missing = [v for v in wanted if v not in set(known)]
    if missing:
        raise InputError(f"{dataset.root}, split {dataset.split}: no video {missing[0]!r}; rvos-cache check lists them")
    chosen = [v for v in known if v in set(wanted)] if wanted else known
    chosen = chosen[:limit]
    try:
        index, count = (int(part) for part in shard.split("/"))
        if not 1 <= index <= count:
            raise ValueError
    except ValueError:
        raise InputError(f"--shard wants i/n with 1 <= i <= n, got {shard!r}") from None
    return chosen[index - 1 :: count]


def extract(
    dataset: str,
    root: Path,
    split: str,
    tracker: str,
    out: Path,
    *,
    videos: Iterable[str] = (),
    limit: int | None = None,
    shard: str = "1/1",
    overrides: Mapping[str, Any] | None = None,
    corrupt: str | None = None,
    jobs: int = 1,
) -> ExtractReport:
    """Write the tracks of a split to the cache `out`. Running it again does what is left; a failed video stops no other.

    corrupt: "name:severity" of what is done to frames before the tracker sees them (`corruptions`); it is part of the card.
    Raises InputError for settings or a dataset that cannot be used, OSError when the disk is full or read-only.
    """
    if corrupt is not None:
        parsed(corrupt)
    source = open_dataset(dataset, root, split)
    kind = tracker_class(tracker)
    made = kind(build(kind.Settings, overrides or {}, f"tracker {tracker}"))
    card = tracks_card(source, dataset, tracker, made, kind.Settings, overrides or {}, out)
    if corrupt is not None:
        card = card.model_copy(update={"extra": {**card.extra, "corrupt": corrupt}})

    def one(writer: CacheWriter, video_id: str) -> int:
        began = time.perf_counter()
        clean = source.video(video_id)
        video = clean if corrupt is None else corrupted(clean, corrupt)
        truth = source.ground_truth(video_id) if source.has_answers else None
        record = extract_video(made, video, source.expressions(video_id), truth)
        write_tracks(writer, record, {"host": socket.gethostname(), "seconds": round(time.perf_counter() - began, 3)})
        return len(video)

    return write_videos(out, card, chosen_videos(source, videos, limit, shard), one, f"{tracker} {split}", jobs)


def extract_text(
    dataset: str,
    root: Path,
    split: str,
    encoder: str,
    out: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> ExtractReport:
    """Write the words of a split's expressions to the cache `out`. Raises like `extract`."""
    source = open_dataset(dataset, root, split)
    kind = encoder_class(encoder)
    settings = build(kind.Settings, overrides or {}, f"text encoder {encoder}")
    made = kind(settings)
    card = Card(
        kind="text",
        dataset=dataset,
        split=split,
        producer=encoder,
        settings=settings.model_dump(mode="json"),
        weights=made.weight_hashes(),
        expressions_digest=bound_digest(source, out),
        channels=made.channels,
        root=str(Path(root)),
        **provenance(),
    )

    def one(writer: CacheWriter, video_id: str) -> int:
        expressions = source.expressions(video_id)
        words = made.encode([e.text for e in expressions])
        write_text(writer, TextRecord(video_id, expressions, tuple(words)))
        return len(expressions)

    return write_videos(out, card, source.video_ids(), one, f"{encoder} {split}")


def extract_all(
    dataset: str,
    root: Path,
    *,
    splits: Sequence[str] = (),
    tracker: str = "flow",
    encoder: str = "hashed",
    out: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    corrupt: str | None = None,
    jobs: int = 1,
) -> dict[str, ExtractReport]:
    """Tracks and words of every split found: `<out>/<split>/<tracker>.zarr` and `text-<encoder>.zarr`.

    `out` is out/cache/<dataset> by default; tracks of corrupted frames lie in `<tracker>-<name>-<severity>.zarr`.
    Raises InputError when no split is found.
    """
    found = list(splits) or resolve(DATASETS, dataset, "dataset").splits(Path(root))
    if not found:
        raise InputError(f"{root}: no split of {dataset} here; put the dataset there or give --root (make: ROOT=...)")
    base = out or Path("out/cache") / dataset
    reports = {}
    for split in found:
        name = "-".join([tracker.rpartition(":")[2], *(corrupt.split(":") if corrupt else [])])
        (base / split).mkdir(parents=True, exist_ok=True)
        tracks = base / split / f"{name}.zarr"
        reports[f"{split}/{name}"] = extract(
            dataset, root, split, tracker, tracks, overrides=overrides, corrupt=corrupt, jobs=jobs
        )
        words = base / split / f"text-{encoder.rpartition(':')[2]}.zarr"
        reports[f"{split}/text"] = extract_text(dataset, root, split, encoder, words)
    return reports


def tracks_card(
    source: Dataset, dataset: str, name: str, tracker: Tracker, schema: type[Any], overrides: Mapping[str, Any], out: Path
) -> Card:
    """The card of the tracks cache `out`."""
    specs = [{"name": s.name, "dims": list(s.dims), "dtype": s.dtype, "by_frame": s.by_frame} for s in tracker.feature_specs]
    return Card(
        kind="tracks",
        dataset=dataset,
        split=source.split,
        producer=name,
        settings=build(schema, overrides, f"tracker {name}").model_dump(mode="json"),
        weights=tracker.weight_hashes(),
        expressions_digest=bound_digest(source, out) if tracker.reads_expressions else None,
        channels=tracker.channels,
        label_iou=tracker.label_iou,
        training_only=tracker.wants_ground_truth,
        feature_specs=specs,
        root=str(source.root),
        **provenance(),
    )


def _expressions(dataset: Dataset, video_id: str) -> tuple[Expression, ...]:
    # A video whose expressions are broken fails when it is extracted; the digest of the rest still binds.
    try:
        return dataset.expressions(video_id)
    except InputError:
        return ()


def write_videos(
    out: Path, card: Card, videos: Sequence[str], one: Callable[[CacheWriter, str], int], title: str, jobs: int = 1
) -> ExtractReport:
    """Every video that is not in the cache `out` yet, in this process or `jobs` forked ones that take turns.

    one: writes a video and returns its frames; what it raises is recorded in failures.jsonl and stops no other video.
    Raises InputError when `out` is another cache, OSError when the disk is full or read-only.
    """
    report = ExtractReport()
    with naming(out):
        writer = CacheWriter(out, card)
        done = writer.done()
        report.skipped = [v for v in videos if v in done]
        left = [v for v in videos if v not in done]
        with Progress(title, len(videos), len(report.skipped)) as progress:
            for video_id, frames, error in _results(left, lambda video_id: one(writer, video_id), jobs):
                if error is None:
                    report.done.append(video_id)
                else:
                    report.failed[video_id] = error
                    writer.fail(video_id, error)
                progress.advance(frames, failed=error is not None)
    return report


_WORK: Callable[[str], int] | None = None


def _results(videos: Sequence[str], one: Callable[[str], int], jobs: int) -> Iterable[tuple[str, int, str | None]]:
    global _WORK
    _WORK = one
    if jobs <= 1 or len(videos) <= 1:
        yield from map(_guarded, videos)
        return
    # fork: a child inherits the opened dataset and tracker instead of reading them again.
    # An executor, not a Pool: a Pool waits for ever for a process that the system killed for its memory.
    pool = ProcessPoolExecutor(
        min(jobs, len(videos)), multiprocessing.get_context("fork"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    try:
        for future in as_completed([pool.submit(_guarded, v) for v in videos]):
            yield future.result()
    except BrokenProcessPool:
        raise InputError("a process was killed (out of memory?); run the same command again with fewer --jobs") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _guarded(video_id: str) -> tuple[str, int, str | None]:
    """One video; its fault is a result. A fault of the disk is raised, and so is a stop by the user."""
    assert _WORK is not None
    try:
        return video_id, _WORK(video_id), None
    except OSError as error:
        if error.errno in FATAL:
            raise
        return video_id, 0, f"{type(error).__name__}: {error}"
    except InputError as error:
        return video_id, 0, str(error)
    # A tracker is somebody's model: whatever it raises on one video must not stop a night's run. It is recorded.
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return video_id, 0, f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"


class Progress:
    """Videos done, failed and left, frames per second and time left; one line a minute when not on a terminal."""

    def __init__(self, title: str, total: int, skipped: int) -> None:
        self.title, self.total, self.count = title, total, skipped
        self.fresh = self.frames = self.failed = 0
        self.start = self.spoken = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.count, note="")
            self.bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.fresh:
            self._say()

    def advance(self, frames: int, failed: bool) -> None:
        """One more video with so many frames."""
        self.count, self.fresh, self.frames, self.failed = (
            self.count + 1,
            self.fresh + 1,
            self.frames + frames,
            self.failed + failed,
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=self.count, note=self.note())
        elif time.monotonic() - self.spoken >= 60:
            self.spoken = time.monotonic()
            self._say()

    def note(self) -> str:
        """The line that says how far and how long."""
        spent = time.monotonic() - self.start
        left = self.total - self.count
        minutes, seconds = divmod(int(np.ceil(spent / max(self.fresh, 1) * left)), 60)
        return (
            f"{self.count}/{self.total} videos, {self.failed} failed, {left} left, "
            f"{self.frames / max(spent, 1e-9):.1f}/s, {minutes}:{seconds:02d} to go"
        )

    def _say(self) -> None:
        sys.stderr.write(f"{self.title}: {self.note()}\n")
