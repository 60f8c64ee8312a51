"""What an extraction will take, from a timing of a few of its videos."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.extraction.budget import planned_bytes
from rvos_cache.extraction.engine import fault
from rvos_cache.extraction.steps import tracks_card
from rvos_cache.extraction.work import TrackWork
from rvos_cache.store import CacheWriter, open_backend
from rvos_cache.trackers.planned import PlannedBytes, Size


@dataclass(frozen=True)
class Plan:
    """Estimates for a whole split.

    videos, frames: of the split, without videos that cannot be opened; size: bytes on disk, from the videos timed; planned:
    what the tracker knew of them before; seconds: of one process, loading not counted; fastest, slowest: the same at the rate
    of the fastest and slowest video timed; loading: seconds, once per process; timed: frames of each video timed; failed:
    video -> error of those that could not be opened or timed; machine: where it was timed.
    """

    videos: int
    frames: int
    size: float
    planned: PlannedBytes | None
    seconds: float
    fastest: float
    slowest: float
    loading: float
    timed: dict[str, int]
    failed: dict[str, str]
    machine: str


def plan(work: TrackWork, sample: int, known: Callable[[PlannedBytes], None] | None = None) -> Plan:
    """Time `sample` videos of the split and scale by frames.

    known: called before anything is timed, with the bytes that the tracker knows, where it knows them; what it raises ends
    the plan. Raises InputError when none of the videos can be extracted, or the split hides what the tracker prompts with.
    """
    work.check_prompted()
    began = time.perf_counter()
    sizes, failed = _opened(work)
    if not sizes:
        first = f"of {len(failed)} none can be opened; first {min(failed.items())[1]}" if failed else "no videos"
        raise InputError(f"{work.root}, split {work.split}: {first}; see rvos-cache check")
    planned = planned_bytes(work, sizes.values())
    if known is not None and planned is not None:
        known(planned)
    frames, seconds = {video_id: count for video_id, (_, count) in sizes.items()}, {}
    with tempfile.TemporaryDirectory(prefix="rvos-plan-") as folder:
        out = Path(folder) / "plan.zarr"
        writer = CacheWriter(out, tracks_card(work, out))
        loading, empty = time.perf_counter() - began, writer.backend.size()
        for video_id in spread(frames, sample):
            began = time.perf_counter()
            try:
                work.make(video_id).write(writer)
            except Exception as error:
                failed[video_id] = fault(error)
            else:
                seconds[video_id] = time.perf_counter() - began
        held = open_backend(out).size() - empty
    if not seconds:
        raise InputError(f"{work.root}: of {len(failed)} videos tried none could be extracted; first {min(failed.items())[1]}")
    timed, total = {v: frames[v] for v in seconds}, sum(frames.values())
    rates = [seconds[v] / frames[v] for v in seconds]
    per_frame, bytes_per_frame = sum(seconds.values()) / sum(timed.values()), held / sum(timed.values())
    return Plan(
        videos=len(frames),
        frames=total,
        size=bytes_per_frame * total,
        planned=planned,
        seconds=per_frame * total,
        fastest=min(rates) * total,
        slowest=max(rates) * total,
        loading=loading,
        timed=timed,
        failed=failed,
        machine=machine(),
    )


def _opened(work: TrackWork) -> tuple[dict[str, Size], dict[str, str]]:
    """Video -> its size, and video -> error of those that cannot be opened, which an extraction records as failed."""
    sizes: dict[str, Size] = {}
    failed: dict[str, str] = {}
    for video_id in work.source.video_ids():
        try:
            video = work.source.video(video_id)
            sizes[video_id] = (video.size, len(video))
        except InputError as error:
            failed[video_id] = fault(error)
    return sizes, failed


def spread(frames: dict[str, int], sample: int) -> list[str]:
    """`sample` videos from the shortest to the longest: one from the middle of each of as many equal parts."""
    by_length = sorted(frames, key=lambda video_id: (frames[video_id], video_id))
    count = min(sample, len(by_length))
    return [by_length[(2 * i + 1) * len(by_length) // (2 * count)] for i in range(count)]


def machine() -> str:
    """This machine: its name, cores and, where torch is in use, GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""
    return f"{platform.node()} ({cores} cores{gpu})"
