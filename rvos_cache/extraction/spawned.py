"""Videos by several processes that use GPUs: each is started anew, since CUDA does not work in a process that was forked."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.extraction.engine import Outcome, failure_message
from rvos_cache.extraction.work import Work
from rvos_cache.store import CacheWriter, Card
from rvos_cache.system.device import choose_device, device, limit_memory
from rvos_cache.system.interrupts import starting_processes

SHARED = 0.9
"""Share of a GPU's memory that all processes take together; the rest is for the model of the process that starts them."""


@dataclass(frozen=True)
class Place:
    """Where a process runs its models: a device, and its share of that device's memory."""

    device: str
    share: float = 1.0


def places(processes: int, name: str, gpus: int) -> list[Place]:
    """The place of each process: process k on GPU k mod `gpus`, or all on the one that `name` ("cuda:1") gives. Those of one GPU
    share its memory evenly."""
    on = [name if ":" in name else f"cuda:{k % gpus}" for k in range(processes)]
    return [Place(each, SHARED / on.count(each)) for each in on]


def places_here(processes: int) -> list[Place]:
    """`places` on the GPUs of this machine."""
    import torch

    return places(processes, str(device()), torch.cuda.device_count())


def run_spawned(work: Work, writer: CacheWriter, videos: Sequence[str], jobs: int) -> Iterator[Outcome]:
    """Outcomes in the order they finish. Raises like Engine.run; InputError for work that is no more than a function of this
    process."""
    try:
        pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError):
        raise InputError(
            f"--jobs {jobs}: this step cannot be given to other processes of a GPU; leave it out, or use --shard i/n"
        ) from None
    context = multiprocessing.get_context("spawn")
    count = min(jobs, len(videos))
    with writer.backend.marker_file() as mark:
        started = context.Value("i", 0)
        arguments = (places_here(count), started, work, writer.backend.uri(), writer.card, mark)
        pool = ProcessPoolExecutor(count, context, _start, arguments)
        try:
            with starting_processes():
                submitted = [pool.submit(_run, video_id) for video_id in videos]
            for future in as_completed(submitted):
                yield future.result()
        except BrokenProcessPool:
            raise InputError("a process was killed (out of memory?); run the same command again with fewer --jobs") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_OPENED: tuple[Work, CacheWriter] | Exception | None = None


def _start(where: Sequence[Place], started: Any, work: Work, address: str, card: Card, mark: str) -> None:
    """Open everything, in a new process. An error is raised again for each video: one that is raised here has no message."""
    global _OPENED
    with started.get_lock():
        place, started.value = where[started.value % len(where)], started.value + 1
    try:
        choose_device(place.device)
        limit_memory(place.share)
        writer = CacheWriter.attach(address, card, mark)
        work.open(card)
        _OPENED = work, writer
    except Exception as error:
        _OPENED = error


def _run(video_id: str) -> Outcome:
    assert _OPENED is not None
    if isinstance(_OPENED, Exception):
        raise _OPENED
    work, writer = _OPENED
    try:
        return Outcome(video_id, work.make(video_id).write(writer))
    except Exception as error:
        return Outcome(video_id, 0, failure_message(error))
