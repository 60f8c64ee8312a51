"""Recorded inputs and outputs of SSA's released modules (Tavarich/SSA, 02f4046), and the weights that they were recorded with.

All of them are in the project's folder of golden values (RVOS_GOLDEN, else ../shared/golden); tests/golden has a part of at most 1 MB
(`tests/golden/cut_ssa.py`), whose outputs are cut along their axes.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
SHARED = Path(os.environ.get("RVOS_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
TOLERANCE = 1e-4
WIDE = ("sem_seg_head.predictor.query_embed.weight", "vita_module.query_embed.weight", "vita_module.fq_pos.weight")
"""Weights of a larger scale, so that queries differ."""


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors: those of tests/golden, replaced by whole ones where the project's folder is there."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in (FOLDER / "ssa.safetensors", SHARED / "ssa.safetensors"):
        if path.is_file():
            tensors |= load_file(path)
    # Copies are aligned in memory; a last bit may depend on that.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the tensor `name` that the modules were recorded with."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name in WIDE:
        return 3 * x
    if len(shape) >= 2:
        return x / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x


@cache
def released_shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the 715 trained tensors of the released checkpoint."""
    lines = (FOLDER / "ssa_names.txt").read_text("utf-8").splitlines()
    return {name: tuple(map(int, sizes)) for name, *sizes in map(str.split, lines)}


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


def cut(value: Tensor, stored: Tensor) -> Tensor:
    """`value` with the entries that `stored`, cut along its axes, has of it."""
    for axis, (size, kept) in enumerate(zip(value.shape, stored.shape, strict=True)):
        if size != kept:
            value = value.index_select(axis, torch.arange(0, size, -(-size // kept)))
    return value


def error(name: str, value: Tensor) -> float:
    """The largest difference from the recorded value, relative to it where that is above 1."""
    stored = golden()[name]
    return float(((cut(value, stored) - stored).abs() / stored.abs().clamp(min=1)).max())


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
