"""Recorded inputs and outputs of SSA's released modules (Tavarich/SSA, 02f4046), and their weights; see `golden_values`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import golden_values
import torch
from golden_values import TOLERANCE, cut, load_golden, load_shapes, relative_error
from torch import Tensor

__all__ = ["TOLERANCE", "cut"]
WIDE = ("sem_seg_head.predictor.query_embed.weight", "vita_module.query_embed.weight", "vita_module.fq_pos.weight")
"""Weights of a larger scale, so that queries differ."""


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors, see `golden_values.load_golden`."""
    return load_golden("ssa.safetensors")


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the tensor `name` that the modules were recorded with."""
    if name in WIDE:
        return 3 * math.sqrt(shape[1]) * golden_values.weight(name, shape)
    return golden_values.weight(name, shape)


@cache
def released_shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the 715 trained tensors of the released checkpoint."""
    return load_shapes("ssa_names.txt")


def released_tensors() -> dict[str, Tensor]:
    """The trained tensors, under their released names."""
    return {name: weight(name, shape) for name, shape in released_shapes().items()}


def golden_trunk() -> Any:
    """The small image tower of part w."""
    from transformers import ConvNextConfig, ConvNextModel

    with torch.random.fork_rng(devices=[]):
        trunk = ConvNextModel(ConvNextConfig(hidden_sizes=[192, 384, 768, 1536], depths=[1, 1, 2, 1]))
    trunk.load_state_dict({name: weight(name, tuple(tensor.shape)) for name, tensor in trunk.state_dict().items()})
    return trunk.eval()


def error(name: str, value: Tensor) -> float:
    """The largest difference from the recorded value, relative to it where that is above 1."""
    return relative_error(value, golden()[name])


@contextmanager
def recorded_points() -> Iterator[None]:
    """Every call torch.rand(..., P, 2) returns the recorded points of P."""
    rand = torch.rand

    def recorded(*size: Any, **_: Any) -> Tensor:
        shape = size if isinstance(size[0], int) else tuple(size[0])
        return golden()[f"e.points{shape[-2]}"].expand(*shape).clone()

    torch.rand = recorded  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.rand = rand
