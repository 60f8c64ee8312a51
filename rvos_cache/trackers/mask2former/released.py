"""Modules from the tensors of a released checkpoint: sizes are read from the tensors, and every tensor must fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from rvos_cache.errors import InputError

Built = TypeVar("Built", bound=nn.Module)


class ReleasedSizes:
    """Sizes of released tensors. kind: what the checkpoint is called in errors; prefix: what errors put before a name."""

    def __init__(self, tensors: Mapping[str, Tensor], kind: str, prefix: str = "") -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.kind, self.prefix = kind, prefix

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError if it is missing or its number of axes is not `axes`."""
        shape = self.shapes.get(name)
        if shape is None:
            raise InputError(f"the tensor {self.prefix + name!r} is missing; give a complete {self.kind}")
        if len(shape) != axes:
            raise InputError(f"{self.prefix + name!r} is {shape}, expected {axes} axes; give a {self.kind}")
        return shape

    def count(self, prefix: str) -> int:
        """How many different numbers follow `prefix` in the names."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.shapes if name.startswith(prefix)})


def load_released(build: Callable[[], Built], tensors: Mapping[str, Tensor], kind: str, prefix: str = "") -> Built:
    """The module of `build`, frozen, float32, in evaluation, with `tensors`, which have its own names.

    kind: what the checkpoint is called in errors; prefix: what errors put before a name. Raises InputError naming a tensor that
    is missing, unknown, or of another shape than the module's.
    """
    # On the meta device no memory is allocated and no random numbers are generated.
    with torch.device("meta"):
        module = build()
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in sorted(shapes.keys() | tensors.keys()):
        if name not in tensors:
            raise InputError(f"the tensor {prefix + name!r} is missing; give a complete {kind}")
        if name not in shapes:
            raise InputError(f"the tensor {prefix + name!r} is not one of a {kind}; give a complete one")
        shape = tuple(tensors[name].shape)
        if shape != shapes[name]:
            raise InputError(f"{prefix + name!r} is {shape}, expected {shapes[name]} from the other tensors")
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    module.load_state_dict(floats, assign=True)
    return module.eval().requires_grad_(False)
