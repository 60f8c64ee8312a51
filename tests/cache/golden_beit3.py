"""Recorded inputs and outputs of BEiT-3 in torchscale 0.3.0, two sizes, and the tokens of SentencePiece.

All values are in the project's folder of golden values (RVOS_GOLDEN, else ../shared/golden); tests/golden has a part of at most 1 MB
(`tests/golden/cut_beit3.py`), whose outputs are cut along their axes. The tokens are there whole.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import torch
from tiny_beit3 import official_tensors
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
SHARED = Path(os.environ.get("RVOS_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
TOLERANCE = 1e-5
"""Of max(1, largest absolute value of the tensor). float32 differs from float64 by 7e-7."""
SIZES = {
    "small": {"width": 128, "layers": 4, "vocabulary": 500},
    "base": {"width": 768, "layers": 12, "vocabulary": 64010},
}


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors: those of tests/golden, replaced by whole ones where the project's folder is there."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in (FOLDER / "beit3.safetensors", SHARED / "beit3.safetensors"):
        if path.is_file():
            tensors |= load_file(path)
    # Copies are aligned in memory; a last bit may depend on that.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def recorded_tensors(size: str) -> dict[str, Tensor]:
    """The weights that `size` was recorded with, under their released names."""
    return official_tensors(**SIZES[size], grid=14, longest=1022)


def tokens() -> list[tuple[str, list[int]]]:
    """Sentences, and the ids of their pieces by SentencePiece in XLM-R's numbering, without special tokens."""
    return [(text, ids) for text, ids in json.loads((FOLDER / "beit3_tokens.json").read_text("utf-8"))]


def error(name: str, value: Tensor) -> float:
    """The largest difference from the recorded value, over the largest absolute value where that is above 1."""
    stored = golden()[name]
    for axis, (size, kept) in enumerate(zip(value.shape, stored.shape, strict=True)):
        if size != kept:
            value = value.index_select(axis, torch.arange(0, size, -(-size // kept)))
    return float((value - stored).abs().max() / stored.abs().max().clamp(min=1))
