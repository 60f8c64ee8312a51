"""Videos on this machine: one process that writes a video while it computes the next, or several processes: forked ones, or new ones
where they use a GPU."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from rvos_cache.errors import InputError
from rvos_cache.extraction.engine import Outcome, failure_message
from rvos_cache.extraction.spawned import run_spawned
from rvos_cache.extraction.work import Pending, Work
from rvos_cache.store import CacheWriter
from rvos_cache.system.device import uses_gpu
from rvos_cache.system.interrupts import forking


@dataclass(frozen=True)
class LocalEngine:
    """`jobs` processes on this machine."""

    jobs: int = 1

    def run(self, work: Work, writer: CacheWriter, videos: Sequence[str]) -> Iterator[Outcome]:
        """Outcomes in the order of `videos` for one process, in the order they finish for several. Raises like Engine.run."""
        if self.jobs <= 1 or len(videos) <= 1:
            return _run_overlapped(work, writer, videos)
        return (run_spawned if uses_gpu() else _run_forked)(work, writer, videos, self.jobs)


def write_pending(video_id: str, pending: Pending, writer: CacheWriter) -> Outcome:
    """Write a video and return its outcome. Raises OSError for an error of the disk."""
    try:
        return Outcome(video_id, pending.write(writer))
    except Exception as error:
        return Outcome(video_id, 0, failure_message(error))


def _run_overlapped(work: Work, writer: CacheWriter, videos: Sequence[str]) -> Iterator[Outcome]:
    """One thread writes a video (packing, disk) while the next is computed (a GPU). At most two records are in memory.

    Closing the iterator, also by Ctrl-C, waits for the video that is being written.
    """
    with ThreadPoolExecutor(1, "writer") as thread:
        writing: Future[Outcome] | None = None
        for video_id in videos:
            try:
                result: Pending | Outcome = work.make(video_id)
            except Exception as error:
                result = Outcome(video_id, 0, failure_message(error))
            if writing is not None:
                yield writing.result()
                writing = None
            if isinstance(result, Outcome):
                yield result
            elif result.detached:
                writing = thread.submit(write_pending, video_id, result, writer)
            else:
                yield write_pending(video_id, result, writer)
        if writing is not None:
            yield writing.result()


_INHERITED: tuple[Work, CacheWriter] | None = None


def _run_forked(work: Work, writer: CacheWriter, videos: Sequence[str], jobs: int) -> Iterator[Outcome]:
    # fork: a child process inherits the opened dataset and tracker instead of reading them again.
    # An executor, not a Pool: a Pool waits for ever for a process that the system killed for its memory.
    global _INHERITED
    _INHERITED = work, writer
    pool = ProcessPoolExecutor(min(jobs, len(videos)), multiprocessing.get_context("fork"), _start_child)
    try:
        with forking():
            submitted = [pool.submit(_run_in_child, v) for v in videos]
        for future in as_completed(submitted):
            yield future.result()
    except BrokenProcessPool:
        raise InputError("a process was killed (out of memory?); run the same command again with fewer --jobs") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _INHERITED = None


def _start_child() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        # The parent's thread pool does not exist in a forked child, which would wait for it for ever.
        torch.set_num_threads(1)


def _run_in_child(video_id: str) -> Outcome:
    assert _INHERITED is not None
    work, writer = _INHERITED
    try:
        pending = work.make(video_id)
    except Exception as error:
        return Outcome(video_id, 0, failure_message(error))
    return write_pending(video_id, pending, writer)
