"""The memory maps that frames attend to, projected by each layer, in slots that are allocated once and written in place.

A map is attended to by several later frames, each time with another temporal position, and a projection is linear. So the keys and
values of a map are computed once, and the projected position is added to the keys.
Letters: B objects, n heads, L = h * w cells of a map, c channels of a head, S slots.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor


class MemoryRing:
    """Rotated keys and values of `slots` maps of `objects` objects, each (layers, B, n, S, L, c).

    At 1024 pixels 34 MB in bfloat16 for each object and map: four layers of 256 channels. storage: one of at least as many objects,
    whose memory is used; only one of both may be in use.
    """

    def __init__(
        self,
        objects: int,
        slots: int,
        layers: int,
        heads: int,
        cells: int,
        width: int,
        dtype: Any,
        device: Any,
        storage: MemoryRing | None = None,
    ) -> None:
        shape = (layers, objects, heads, slots, cells, width)
        self.objects, self.slots = objects, slots
        if storage is None:
            self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        else:
            self.keys, self.values = (part.flatten()[: prod(shape)].view(shape) for part in (storage.keys, storage.values))

    def layer(self, i: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys (B, n, S, L, c) of layer i, without positions, and the values (B, n, count * L, c) of the first `count` slots."""
        return self.keys[i], self.values[i][:, :, :count].flatten(2, 3)
