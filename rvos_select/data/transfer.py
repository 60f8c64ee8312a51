"""Tensors of the host to a GPU: all of a batch in one copy from pinned memory, for which the host does not wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rvos_select.data.features import FrameReader

ALIGNMENT = 64
"""Bytes. Every tensor begins at a multiple, as a tensor of its own would."""


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with the tensors in it, also those in mappings and tuples, on `device`; those of the host go to a GPU together.

    What is read from disk when it is indexed is put there then; everything else stays as it is.
    """
    host = {id(t): t for t in _tensors(value) if t.device.type == "cpu" and t.numel()} if device.type == "cuda" else {}
    together = dict(zip(host, copy_together(list(host.values()), device))) if host else {}

    def move(item: Any) -> Any:
        if isinstance(item, Tensor):
            return together[id(item)] if id(item) in together else item.to(device, non_blocking=True)
        if isinstance(item, FrameReader):
            return item.to(device)
        if isinstance(item, Mapping):
            return {name: move(part) for name, part in item.items()}
        return tuple(move(part) for part in item) if isinstance(item, tuple) else item

    return move(value)


def copy_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors on `device`, as parts of one buffer."""
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, start in zip(tensors, starts):
        _part(buffer, start, tensor).copy_(tensor)
    moved = buffer.to(device, non_blocking=True)
    return [_part(moved, start, tensor) for tensor, start in zip(tensors, starts)]


def _part(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
