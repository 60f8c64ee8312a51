"""A step for each of many tasks, in this process or in several, in order and in constant memory."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from rvos_cache.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_order(step: Callable[[Task], Result], tasks: Iterable[Task], processes: int) -> Iterator[Result]:
    """`step` of every task in order; only the tasks of the next moments are held. What a step raises is raised here.

    Raises InputError when a process dies.
    """
    if processes <= 1:
        yield from map(step, tasks)
        return
    pending = deque[Future[Result]]()
    # spawn: forking a process that has loaded torch or zarr threads can hang. Ctrl-C is the parent's to handle.
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            for task in tasks:
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
