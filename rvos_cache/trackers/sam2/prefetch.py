"""Loading that runs in a thread, ahead of what uses it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")


def ahead(load: Callable[[Key], Loaded], keys: Iterable[Key], depth: int) -> Iterator[Loaded]:
    """`load(key)` of each key in order, up to `depth` of them before they are asked for. What `load` raises is raised here.

    One thread: the films of `rvos_cache.frames` are decoded in order and are not made for several.
    """
    waiting: deque[Future[Loaded]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for key in keys:
            waiting.append(pool.submit(load, key))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
