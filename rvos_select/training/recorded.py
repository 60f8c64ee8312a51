"""Training steps that a GPU replays from CUDA graphs: one launch for a step's thousand kernels, which the host would take longer to
launch than the GPU to compute.

A graph reads and writes fixed places of memory. So the batches are padded to a few shapes, each with tensors and a graph of its own:
the first step of a shape is computed as always, the second is recorded. Padding changes no loss, but for the order of its sums, and
random numbers of dropout are drawn for padded tokens too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rvos_select.data.batch import Batch
from rvos_select.data.padding import BatchShape, PaddedBatch, padded_shape
from rvos_select.selectors import Selector

LIMIT = 512
"""Graphs at most; the steps of further shapes are computed as always."""

Compute = Callable[[Batch], dict[str, Tensor]]
"""A whole step of the optimiser on a batch -> its losses and the norm of its gradient, scalars."""


def can_record(model: Selector, device: torch.device) -> bool:
    """Whether the steps of this selector can be replayed on this device."""
    return device.type == "cuda" and model.static_shapes and not model.requires and not len(model.frozen)


class RecordedSteps:
    """The steps of a run by shape, each computed by `compute`, whose kernels are those of the shape whatever the values are."""

    def __init__(self, compute: Compute, device: torch.device) -> None:
        self.compute, self.device = compute, device
        self.batches: dict[BatchShape, PaddedBatch] = {}
        self.graphs: dict[BatchShape, _Graph] = {}
        self.pool: Any = None

    def fits(self, batch: Batch) -> bool:
        """Whether there is a graph of its shape, or may be one. A batch without tracks or words has none."""
        return (
            all(batch.track_mask.shape)
            and all(batch.word_mask.shape)
            and (padded_shape(batch) in self.batches or len(self.batches) < LIMIT)
        )

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Compute the step of a batch of the host -> what `compute` gives, in tensors of its own."""
        shape = padded_shape(batch)
        padded = self.batches.get(shape)
        first = padded is None
        if padded is None:
            padded = self.batches[shape] = PaddedBatch(batch, self.device)
        padded.load(batch)
        if first:
            return self.compute(padded.batch())
        if shape not in self.graphs:
            # Kernels are chosen and the optimiser's tensors made in the first step, so nothing but kernels is recorded.
            self.graphs[shape] = _Graph(lambda: self.compute(padded.batch()), self.pool)
            self.pool = self.graphs[shape].pool
        return self.graphs[shape].replay()


class _Graph:
    """The kernels of a function that returns scalars. pool: memory shared with other graphs, of which one runs at a time."""

    def __init__(self, function: Callable[[], dict[str, Tensor]], pool: Any) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            values = function()
            self.names, self.values = tuple(values), torch.stack([value.float() for value in values.values()])
        self.pool = self.graph.pool()

    def replay(self) -> dict[str, Tensor]:
        self.graph.replay()
        return dict(zip(self.names, self.values.clone().unbind()))
