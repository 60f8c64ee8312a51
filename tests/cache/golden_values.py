"""Recorded inputs and outputs of released modules: where they lie, how they are cut, and the weights that they were recorded with.

All of them are in the project's folder of golden values (RVOS_GOLDEN, else ../shared/golden); tests/golden has of each file a part of
at most 1 MB (`tests/golden/cut_*.py`), whose outputs are cut along their axes. A module `golden_NAME.py` has what is NAME's alone.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
SHARED = Path(os.environ.get("RVOS_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
TOLERANCE = 1e-4


def load_golden(file: str) -> dict[str, Tensor]:
    """The recorded tensors of `file`: those of tests/golden, replaced by whole ones where the project's folder is there."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in (FOLDER / file, SHARED / file):
        if path.is_file():
            tensors |= load_file(path)
    # Copies are aligned in memory; a last bit may depend on that.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def load_shapes(file: str, group: str = "") -> dict[str, tuple[int, ...]]:
    """Name -> shape of released tensors, as a file of tests/golden lists them: [group] name size size ..., one tensor a line.

    group: the first word of the lines that are read; "" for a file without groups.
    """
    lines = map(str.split, (FOLDER / file).read_text("utf-8").splitlines())
    own = (words[1:] if group else words for words in lines if not group or words[0] == group)
    return {name: tuple(map(int, sizes)) for name, *sizes in own}


def needs(values: Mapping[str, Tensor], *names: str) -> None:
    """Skip the test where the recorded values are not all there."""
    missing = [name for name in names if name not in values]
    if missing:
        pytest.skip(f"{missing[0]} is only in the project's folder of golden values")


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Random numbers that depend on the name alone: matrices of variance 1 / fan-in, vectors near 1 (weights) or 0 (biases)."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) >= 2:
        return x / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x


def cut(value: Tensor, stored: Tensor) -> Tensor:
    """`value` with the entries that `stored`, cut along its axes, has of it."""
    for axis, (size, count) in enumerate(zip(value.shape, stored.shape, strict=True)):
        if size != count:
            value = value.index_select(axis, torch.arange(0, size, -(-size // count)))
    return value


def relative_error(value: Tensor, stored: Tensor) -> float:
    """The largest difference from the recorded value, relative to it where that is above 1."""
    return float(((cut(value, stored) - stored).abs() / stored.abs().clamp(min=1)).max())
