"""CUDA graphs of a computation on buffers that never move, one for each of its shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


class Graphs:
    """Runs a computation as it is the first time that its key comes, and as a CUDA graph from the second time on.

    The first run compiles kernels and plans attention, which must not happen while a graph is captured; a capture runs nothing, so
    a computation that overwrites its inputs runs once per call. All graphs share the memory of their intermediate results: `pool`, a
    handle of torch.cuda.graph_pool_handle.
    """

    def __init__(self, pool: Any) -> None:
        self.graphs: dict[Hashable, Any] = {}
        self.pool = pool

    def captures(self, key: Hashable) -> bool:
        """Whether the next run with this key is captured."""
        return key in self.graphs and self.graphs[key] is None

    def run(self, key: Hashable, compute: Callable[[], None]) -> None:
        """`compute`, which must read and write the same buffers at each call with this key, and must not wait for the GPU."""
        if key not in self.graphs:
            compute()
            self.graphs[key] = None
            return
        if self.graphs[key] is None:
            self.graphs[key] = self._capture(compute)
        self.graphs[key].replay()

    def _capture(self, compute: Callable[[], None]) -> Any:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        stream = _capture_stream(torch.cuda.current_device())
        stream.wait_stream(current)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        # Not torch.cuda.graph: it collects garbage and frees cached memory at each capture.
        with _usable_generator(generator), torch.cuda.stream(stream):
            # Other threads go on to copy masks.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                compute()
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return graph


@contextmanager
def _usable_generator(generator: torch.Generator) -> Iterator[None]:
    """Lets random numbers be drawn after a capture that failed, as before it: PyTorch leaves the generator waiting for the capture's
    end, so that each later dropout of the process would raise an error."""
    state = generator.get_state()
    try:
        yield
    except BaseException:
        fresh = torch.Generator(generator.device)
        fresh.set_state(state)
        generator.graphsafe_set_state(fresh)
        raise


@cache
def _capture_stream(device: int) -> Any:
    """One for all captures: cuBLAS keeps a workspace for each stream."""
    return torch.cuda.Stream(device)
