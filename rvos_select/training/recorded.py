"""Training steps that a GPU replays from CUDA graphs: one launch for a step's thousand kernels, which the host would take longer to
launch than the GPU to compute.

A graph reads and writes fixed places of memory. So the batches are padded to a few shapes, each with tensors and a graph of its own:
the first step of a shape is computed as always, the second is recorded. Padding changes no loss, but for the order of its sums, and
random numbers of dropout are drawn for padded tokens too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.system.cuda_graphs import Graphs
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
        self.losses: dict[BatchShape, tuple[tuple[str, ...], Tensor]] = {}
        self.graphs = Graphs(torch.cuda.graph_pool_handle() if device.type == "cuda" else None)

    def fits(self, batch: Batch) -> bool:
        """Whether there is a graph of its shape, or may be one. A batch without tracks or words has none."""
        if not all((*batch.track_mask.shape, *batch.word_mask.shape)):
            return False
        return len(self.batches) < LIMIT or padded_shape(batch) in self.batches

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the step of a batch of the host -> what `compute` gives, in tensors of its own.

        Raises InputError for a step that cannot be recorded.
        """
        shape = padded_shape(batch)
        if shape not in self.batches:
            self.batches[shape] = PaddedBatch(batch, self.device)
        self.batches[shape].load(batch)
        captures = self.graphs.captures(shape)
        try:
            self.graphs.run(shape, lambda: self._compute(shape))
        except RuntimeError as error:
            if not captures or isinstance(error, torch.OutOfMemoryError):
                raise
            line = " ".join(str(error).split())
            raise InputError(
                f"the training step cannot be recorded as a CUDA graph ({line:.200}); --set cuda_graphs=false, and for a selector of "
                "your own see static_shapes in rvos_select/README.md"
            ) from error
        names, values = self.losses[shape]
        return dict(zip(names, values.clone().unbind()))

    def _compute(self, shape: BatchShape) -> None:
        values = self.compute(self.batches[shape].batch())
        self.losses[shape] = tuple(values), torch.stack([value.float() for value in values.values()])
