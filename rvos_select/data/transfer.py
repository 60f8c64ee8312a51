"""Tensors of the host to a GPU: all of a batch in one copy from pinned memory, for which the host does not wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from rvos_select.data.features import FrameReader

ALIGNMENT = 64
"""Bytes. Every tensor begins at a multiple, as a tensor of its own would."""

Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> shape and dtype of each tensor in a buffer."""


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
    layout = {str(i): (tuple(tensor.shape), tensor.dtype) for i, tensor in enumerate(tensors)}
    buffer, parts = one_buffer(layout, torch.device("cpu"), pinned=device.type == "cuda")
    for part, tensor in zip(parts.values(), tensors):
        part.copy_(tensor)
    return list(_parts(buffer.to(device, non_blocking=True), layout).values())


class HostCopy:
    """A tensor on its way to the host, which waits for it only when it is read; the device goes on with what is queued behind it."""

    def __init__(self, tensor: Tensor) -> None:
        self._values, self._copied = tensor.detach(), None
        if tensor.device.type == "cuda":
            self._values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(self._values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """The tensor on the CPU; that of a CPU is the tensor itself."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values


def one_buffer(layout: Layout, device: torch.device, pinned: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """A buffer of bytes on `device`, and the tensors of `layout` in it, whose values are not set."""
    size = sum(_aligned_bytes(*entry) for entry in layout.values())
    buffer = torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)
    return buffer, _parts(buffer, layout)


def copy_into(buffer: Tensor, layout: Layout, values: Mapping[str, Tensor]) -> None:
    """Fill a buffer of `one_buffer` with CPU tensors that are at most as large, in one copy; what is beyond them becomes zeros."""
    host, parts = one_buffer(layout, torch.device("cpu"), pinned=buffer.device.type == "cuda")
    host.zero_()
    for name, part in parts.items():
        part[tuple(slice(size) for size in values[name].shape)] = values[name]
    buffer.copy_(host, non_blocking=True)


def _parts(buffer: Tensor, layout: Layout) -> dict[str, Tensor]:
    parts, start = {}, 0
    for name, (shape, dtype) in layout.items():
        parts[name] = buffer[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)
        start += _aligned_bytes(shape, dtype)
    return parts


def _aligned_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
