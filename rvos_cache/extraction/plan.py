"""Estimate of an extraction's time and bytes, from timing a few of its videos."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.extraction.budget import video_size
from rvos_cache.extraction.engine import failure_message
from rvos_cache.extraction.steps import tracks_card
from rvos_cache.extraction.work import TrackWork
from rvos_cache.store import CacheWriter, open_backend
from rvos_cache.system.device import uses_gpu
from rvos_cache.system.progress import tracked
from rvos_cache.trackers.planned import PlannedBytes, Size


@dataclass(frozen=True)
class Plan:
    """Estimates for a whole split.

    videos, frames: of the split, without videos that cannot be opened; size: bytes on disk, scaled from the timed videos;
    planned: the bytes that the tracker knew before it ran, if it knows them; memory: bytes of memory that one process takes for
    the video that needs most, if the tracker knows; seconds: of one process, without loading;
    fastest, slowest: the same at the rate of the fastest and of the slowest timed video; loading: seconds, once per process;
    timed: frames of each timed video; failed: video -> error of those that could not be opened or timed; machine: where it
    was timed.
    """

    videos: int
    frames: int
    size: float
    planned: PlannedBytes | None
    memory: int | None
    seconds: float
    fastest: float
    slowest: float
    loading: float
    timed: dict[str, int]
    failed: dict[str, str]
    machine: str


def plan(
    dataset: str,
    root: Path | str,
    split: str,
    tracker: str,
    *,
    sample: int = 3,
    overrides: Mapping[str, Any] | None = None,
    corrupt: str | None = None,
) -> Plan:
    """Time `sample` videos of a split on this machine and scale by frames; nothing is kept. Arguments as in `extract`.

    Raises InputError if no video can be extracted, or the split hides the ground truth that the tracker prompts with.
    """
    return plan_work(TrackWork(dataset, Path(root), split, tracker, overrides or {}, corrupt), sample)


def plan_work(work: TrackWork, sample: int, on_planned: Callable[[PlannedBytes], None] | None = None) -> Plan:
    """`plan` of a TrackWork. on_planned: called with the bytes that the tracker knows, before anything is timed."""
    work.check_prompts()
    start = time.perf_counter()
    sizes, failed = _open_all(work)
    if not sizes:
        first = f"of {len(failed)} none can be opened; first {min(failed.items())[1]}" if failed else "no videos"
        raise InputError(f"{work.root}, split {work.split}: {first}; see rvos-cache check")
    planned = work.model.planned_bytes(sizes.values())
    if on_planned is not None and planned is not None:
        on_planned(planned)
    frames = {video_id: count for video_id, (_, count) in sizes.items()}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rvos-plan-") as folder:
        out = Path(folder) / "plan.zarr"
        writer = CacheWriter(out, tracks_card(work, out))
        chosen = spread(frames, sample)
        if uses_gpu():
            # The first video of a process compiles kernels; the time of one is that of loading.
            with suppress(Exception):
                work.make(chosen[0])
        loading, empty = time.perf_counter() - start, writer.backend.size()
        for video_id in tracked(chosen, f"time {work.tracker}"):
            start = time.perf_counter()
            try:
                work.make(video_id).write(writer)
            except Exception as error:
                failed[video_id] = failure_message(error)
            else:
                seconds[video_id] = time.perf_counter() - start
        size = open_backend(out).size() - empty
    if not seconds:
        raise InputError(f"{work.root}: of {len(failed)} videos tried none could be extracted; first {min(failed.items())[1]}")
    timed, total = {v: frames[v] for v in seconds}, sum(frames.values())
    rates = [seconds[v] / frames[v] for v in seconds]
    per_frame, bytes_per_frame = sum(seconds.values()) / sum(timed.values()), size / sum(timed.values())
    return Plan(
        videos=len(frames),
        frames=total,
        size=bytes_per_frame * total,
        planned=planned,
        memory=_memory(work, sizes.values()),
        seconds=per_frame * total,
        fastest=min(rates) * total,
        slowest=max(rates) * total,
        loading=loading,
        timed=timed,
        failed=failed,
        machine=machine(),
    )


def _memory(work: TrackWork, sizes: Iterable[Size]) -> int | None:
    """The most bytes of memory that the tracker plans for a video; None where it does not know."""
    planned = [work.model.planned_memory(size, frames) for size, frames in sizes]
    known = [count for count in planned if count is not None]
    return max(known) if len(known) == len(planned) else None


def _open_all(work: TrackWork) -> tuple[dict[str, Size], dict[str, str]]:
    """Video -> its size, and video -> error of those that cannot be opened, which an extraction records as failed."""
    sizes: dict[str, Size] = {}
    failed: dict[str, str] = {}
    for video_id in work.source.video_ids():
        try:
            sizes[video_id] = video_size(work.source, video_id)
        except InputError as error:
            failed[video_id] = failure_message(error)
    return sizes, failed


def spread(frames: dict[str, int], sample: int) -> list[str]:
    """`sample` videos from the shortest to the longest: the middle one of each of `sample` equal parts."""
    by_length = sorted(frames, key=lambda video_id: (frames[video_id], video_id))
    count = min(sample, len(by_length))
    return [by_length[(2 * i + 1) * len(by_length) // (2 * count)] for i in range(count)]


def machine() -> str:
    """This machine as text: name, cores and, if torch is loaded, GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""
    return f"{platform.node()} ({cores} cores{gpu})"
