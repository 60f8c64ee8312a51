"""Which objects of a batch its frames show, known to the host without a wait for each expression."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch

from rvos_select.data.batch import Batch
from rvos_select.data.transfer import HostCopy


class Counts(NamedTuple):
    """objects: of each expression its objects that a frame of the batch shows; expressions: those with a word."""

    objects: list[list[int]]
    expressions: int


class VisibleObjects:
    """Counted on the device when it is made, read by the host when `counts` is: work that is queued between them is not waited for.

    Raises ValueError without `Batch.truth`.
    """

    def __init__(self, batch: Batch) -> None:
        if batch.truth is None:
            raise ValueError("VisibleObjects needs Batch.truth; this split hides its ground truth")
        self._numbers = [len(masks) for masks in batch.truth]
        flags = [masks.flatten(1).any(1) for masks in batch.truth]
        self._copy = HostCopy(torch.cat([*flags, batch.word_mask.any(1)]))

    @cached_property
    def counts(self) -> Counts:
        """Of the batch."""
        flags, objects = self._copy.read().tolist(), []
        for number in self._numbers:
            objects.append([a for a in range(number) if flags[a]])
            flags = flags[number:]
        return Counts(objects, sum(flags))

    @property
    def normalisers(self) -> dict[str, float]:
        """As `Selector.normalisers`: the numbers of expressions and of visible objects."""
        return {"expressions": float(self.counts.expressions), "objects": float(sum(map(len, self.counts.objects)))}
