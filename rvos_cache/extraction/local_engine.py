"""This machine: one process that writes a video while it makes the next, or several forked ones."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from rvos_cache.errors import InputError
from rvos_cache.extraction.engine import Outcome, fault
from rvos_cache.extraction.work import Made, Work
from rvos_cache.store import CacheWriter


@dataclass(frozen=True)
class LocalEngine:
    """`jobs` processes on this machine."""

    jobs: int = 1

    def run(self, work: Work, writer: CacheWriter, videos: Sequence[str]) -> Iterator[Outcome]:
        """Outcomes in the order of `videos` for one process, as they come for several. Raises like Engine.run."""
        if self.jobs <= 1 or len(videos) <= 1:
            return _overlapped(work, writer, videos)
        return _forked(work, writer, videos, self.jobs)


def written(video_id: str, made: Made, writer: CacheWriter) -> Outcome:
    """The outcome of writing a video. Raises OSError for a fault of the disk."""
    try:
        return Outcome(video_id, made.write(writer))
    except Exception as error:
        return Outcome(video_id, 0, fault(error))


def _overlapped(work: Work, writer: CacheWriter, videos: Sequence[str]) -> Iterator[Outcome]:
    """One thread writes a video (packing, disk) while the next is made (a GPU). Two records are in memory at most.

    Leaving, by Ctrl-C too, waits for the video that is being written.
    """
    with ThreadPoolExecutor(1, "writer") as thread:
        behind: Future[Outcome] | None = None
        for video_id in videos:
            try:
                made: Made | Outcome = work.make(video_id)
            except Exception as error:
                made = Outcome(video_id, 0, fault(error))
            if behind is not None:
                yield behind.result()
                behind = None
            if isinstance(made, Outcome):
                yield made
            elif made.detached:
                behind = thread.submit(written, video_id, made, writer)
            else:
                yield written(video_id, made, writer)
        if behind is not None:
            yield behind.result()


_INHERITED: tuple[Work, CacheWriter] | None = None


def _forked(work: Work, writer: CacheWriter, videos: Sequence[str], jobs: int) -> Iterator[Outcome]:
    # fork: a child inherits the opened dataset and tracker instead of reading them again.
    # An executor, not a Pool: a Pool waits for ever for a process that the system killed for its memory.
    global _INHERITED
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise InputError(f"--jobs {jobs}: forked processes cannot use a GPU; leave it out, or use --engine ray or --shard i/n")
    _INHERITED = work, writer
    pool = ProcessPoolExecutor(min(jobs, len(videos)), multiprocessing.get_context("fork"), _child_begins)
    try:
        for future in as_completed([pool.submit(_in_child, v) for v in videos]):
            yield future.result()
    except BrokenProcessPool:
        raise InputError("a process was killed (out of memory?); run the same command again with fewer --jobs") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _INHERITED = None


def _child_begins() -> None:
    # Ctrl-C is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch = sys.modules.get("torch")
    if torch is not None:
        # The parent's threads did not come along: a child that asks them for work waits for ever.
        torch.set_num_threads(1)


def _in_child(video_id: str) -> Outcome:
    assert _INHERITED is not None
    work, writer = _INHERITED
    try:
        made = work.make(video_id)
    except Exception as error:
        return Outcome(video_id, 0, fault(error))
    return written(video_id, made, writer)
