"""The losses of an epoch's steps, which stay on the device until they are read, many at once.

Reading a number of a GPU waits until everything before it is computed, so a loop that reads its loss in every step leaves the GPU
without work while the host prepares the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from rvos_cache.errors import InputError

SECONDS = 1.0
"""Time between two readings."""
LIMIT = 4096
"""Micro-batches and steps that are not read yet, at most."""
FIX = "train anew into another --out with a lower --set optim.lr"


class StepLosses:
    """Losses of micro-batches and the gradient norms of steps, in order.

    sums: name -> sum over the steps that are read; steps: their number; seconds: between two readings. The sums are those of a loop
    that reads every number at once.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.seconds = seconds
        self._unread: list[tuple[str, str | None, Tensor]] = []  # without a key: the norm that ends a step
        self._of_step: dict[str, float] = {}
        self._read_at = time.monotonic()

    def add(self, name: str, losses: Mapping[str, Tensor]) -> None:
        """The losses of a micro-batch, scalars that are not read now. name: for messages."""
        self._unread += [(name, key, value.detach()) for key, value in losses.items()]

    def end_step(self, name: str, norm: Tensor) -> None:
        """The norm of a step's gradient; reads where `seconds` are over. Raises InputError like `read`."""
        self._unread.append((name, None, norm.detach()))
        if time.monotonic() - self._read_at >= self.seconds or len(self._unread) >= LIMIT:
            self.read()

    def read(self) -> None:
        """Read everything that is not read. Raises InputError for the first loss or gradient that is not finite, with its name."""
        unread, self._unread = self._unread, []
        for (name, key, _), value in zip(unread, read_scalars([tensor for _, _, tensor in unread])):
            if not math.isfinite(value) and key in ("loss", None):
                raise InputError(f"{name}: the {key or 'gradient'} is {value}; {FIX}")
            if key is not None:
                self._of_step[key] = self._of_step.get(key, 0.0) + value
                continue
            for each, total in self._of_step.items():
                self.sums[each] = self.sums.get(each, 0.0) + total
            self._of_step.clear()
            self.steps += 1
        self._read_at = time.monotonic()

    @contextmanager
    def explaining(self) -> Iterator[StepLosses]:
        """Steps of an epoch. An error that follows from a loss that is not finite and not read yet is raised as that one; at the end
        everything is read."""
        try:
            yield self
        except Exception:
            self.read()
            raise
        self.read()


def read_scalars(scalars: Sequence[Tensor]) -> list[float]:
    """The values of scalars, with one copy for each device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, scalar in enumerate(scalars):
        groups.setdefault((scalar.device, scalar.dtype), []).append(i)
    values = [0.0] * len(scalars)
    for members in groups.values():
        for i, value in zip(members, torch.stack([scalars[i].reshape(()) for i in members]).tolist()):
            values[i] = value
    return values
