"""Apply a function to many tasks, in this process or in several, in order and in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from rvos_cache.errors import InputError
from rvos_cache.system.interrupts import starting_processes

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(step: Callable[[Task], Result], tasks: Iterable[Task], processes: int) -> Iterator[Result]:
    """`step(task)` of every task in order; only a few tasks are read ahead. An exception of a step is raised here.

    Raises InputError when a process dies.
    """
    if processes <= 1:
        yield from map(step, tasks)
        return
    pending = deque[Future[Result]]()
    # spawn: forking a process with threads of torch or zarr can hang.
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        try:
            for task in tasks:
                with starting_processes():
                    pending.append(pool.submit(step, task))
                if len(pending) > 2 * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise InputError("a process was killed (out of memory?); run the same command again with fewer --processes") from None
        finally:
            for future in pending:
                future.cancel()
