"""Loading in a background thread, ahead of the loop that uses the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def prefetch(load: Callable[[Key], Value], keys: Iterable[Key], depth: int) -> Iterator[Value]:
    """Yield `load(key)` for each key in order, loading up to `depth` keys ahead. Exceptions of `load` are raised here.

    Uses one thread: the film readers of `rvos_cache.media.frames` decode in order and are not thread-safe.
    """
    pending: deque[Future[Value]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for key in keys:
            pending.append(pool.submit(load, key))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
