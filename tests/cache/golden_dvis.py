"""Recorded inputs and outputs of DVIS++'s released modules (zhang-tao-whu/DVIS_Plus, c0eb249), and their weights.

All of them are in the project's folder of golden values (RVOS_GOLDEN, else ../shared/golden); tests/golden has a part of at most
1 MB (`tests/golden/cut_dvis.py`), whose outputs are cut along their axes.
"""

from __future__ import annotations

import math
import os
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
SHARED = Path(os.environ.get("RVOS_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
TOLERANCE = 1e-4
WIDE = ("backbone.vit_module.pos_embed", "backbone.vit_module.cls_token", "backbone.level_embed")


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors: those of tests/golden, replaced by whole ones where the project's folder is there."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in (FOLDER / "dvis.safetensors", SHARED / "dvis.safetensors"):
        if path.is_file():
            tensors |= load_file(path)
    # Copies are aligned in memory; a last bit may depend on that.
    return {name: tensor.clone() for name, tensor in tensors.items()}


@cache
def released_tensors(*prefixes: str) -> dict[str, Tensor]:
    """The released tensors with one of the prefixes, with the values that the modules were recorded with. Do not change them."""
    lines = (FOLDER / "dvis_names.txt").read_text("utf-8").splitlines()
    shapes = {name: tuple(map(int, sizes)) for name, *sizes in map(str.split, lines)}
    return {name: weight(name, shape) for name, shape in shapes.items() if name.startswith(prefixes)}


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the tensor `name` that the modules were recorded with."""
    if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
        return torch.full(shape, 1.0 if name.endswith("running_var") else 0.0)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name in WIDE:
        return 0.5 * x
    if len(shape) < 2:
        return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    x = x / math.sqrt(math.prod(shape[1:]))
    if name.startswith(("tracker.", "refiner.")) and name.endswith("in_proj_weight"):
        x[:1024] *= 1.5
    if name.startswith(("tracker.", "refiner.")) and name.endswith(("out_proj.weight", "linear2.weight")):
        x *= 0.5
    return x


def cut(value: Tensor, stored: Tensor) -> Tensor:
    """`value` with the entries that `stored`, cut along its axes, has of it."""
    for axis, (size, kept) in enumerate(zip(value.shape, stored.shape, strict=True)):
        if size != kept:
            value = value.index_select(axis, torch.arange(0, size, -(-size // kept)))
    return value


def error(name: str, value: Tensor) -> float:
    """The largest difference from the recorded value, relative to the largest recorded one where that is above 1."""
    stored = golden()[name]
    return float((cut(value, stored) - stored).abs().max() / stored.abs().max().clamp(min=1))
