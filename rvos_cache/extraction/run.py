"""A run: process every video that a cache lacks, with one engine, and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvos_cache.errors import naming
from rvos_cache.extraction.engine import Engine
from rvos_cache.extraction.local_engine import LocalEngine
from rvos_cache.extraction.work import OneStep, Work
from rvos_cache.store import CacheWriter, Card
from rvos_cache.system.progress import Progress


@dataclass
class ExtractReport:
    """Ids of the videos. done: written by this run; skipped: in the cache before; failed: with their errors."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_videos(
    out: Path | str, card: Card, videos: Sequence[str], work: Work, title: str, engine: Engine, unit: str = "frames"
) -> ExtractReport:
    """Process every video that the cache `out` lacks; a video that fails is recorded and stops no other.

    Raises InputError if `out` has another card, OSError if the disk is full or read-only.
    """
    report = ExtractReport()
    with naming(Path(out)):
        writer = CacheWriter(out, card)
        done = writer.published_ids()
        report.skipped = [v for v in videos if v in done]
        left = [v for v in videos if v not in done]
        with Progress(title, len(videos), len(report.skipped), parts=unit, announce=True) as progress:
            for outcome in engine.run(work, writer, left):
                if outcome.error is None:
                    report.done.append(outcome.video_id)
                else:
                    report.failed[outcome.video_id] = outcome.error
                    writer.fail(outcome.video_id, outcome.error)
                progress.advance(outcome.frames, failed=outcome.error is not None)
    return report


def write_videos(
    out: Path | str, card: Card, videos: Sequence[str], one: Callable[[CacheWriter, str], int], title: str, jobs: int = 1
) -> ExtractReport:
    """Write every video that the cache `out` lacks, in this process or in `jobs` forked ones.

    one: writes a video and returns its number of frames; if it raises, the error is recorded in failures.jsonl and the other
    videos go on. Raises InputError if `out` has another card, OSError if the disk is full or read-only.
    """
    return run_videos(out, card, videos, OneStep(one), title, LocalEngine(jobs))
