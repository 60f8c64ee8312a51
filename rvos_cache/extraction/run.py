"""A run: every video that a cache lacks, by an engine, with its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvos_cache.errors import naming
from rvos_cache.extraction.engine import Engine
from rvos_cache.extraction.local_engine import LocalEngine
from rvos_cache.extraction.progress import Progress
from rvos_cache.extraction.work import OneStep, Work
from rvos_cache.store import CacheWriter, Card


@dataclass
class ExtractReport:
    """Ids of the videos done now, those that were there before, and the failed ones with their errors."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def run_videos(
    out: Path, card: Card, videos: Sequence[str], work: Work, title: str, engine: Engine, unit: str = "frames"
) -> ExtractReport:
    """Every video that is not in the cache `out` yet, done by `engine`; a failed one is recorded and stops no other.

    Raises InputError when `out` is another cache, OSError when the disk is full or read-only.
    """
    report = ExtractReport()
    with naming(out):
        writer = CacheWriter(out, card)
        done = writer.published_ids()
        report.skipped = [v for v in videos if v in done]
        left = [v for v in videos if v not in done]
        with Progress(title, len(videos), len(report.skipped), unit) as progress:
            for outcome in engine.run(work, writer, left):
                if outcome.error is None:
                    report.done.append(outcome.video_id)
                else:
                    report.failed[outcome.video_id] = outcome.error
                    writer.fail(outcome.video_id, outcome.error)
                progress.advance(outcome.frames, failed=outcome.error is not None)
    return report


def write_videos(
    out: Path, card: Card, videos: Sequence[str], one: Callable[[CacheWriter, str], int], title: str, jobs: int = 1
) -> ExtractReport:
    """Every video that is not in the cache `out` yet, in this process or `jobs` forked ones that take turns.

    one: writes a video and returns its frames; what it raises is recorded in failures.jsonl and stops no other video.
    Raises InputError when `out` is another cache, OSError when the disk is full or read-only.
    """
    return run_videos(out, card, videos, OneStep(one), title, LocalEngine(jobs))
