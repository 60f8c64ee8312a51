"""Recorded inputs and outputs of ReferDINO's released modules (iSEE-Laboratory/ReferDINO, 9a4cda1), and their weights.

All of them are in the project's folder of golden values (RVOS_GOLDEN, else ../shared/golden); tests/golden has a part of at most
1 MB (`tests/golden/cut_referdino.py`), whose outputs are cut along their axes.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
SHARED = Path(os.environ.get("RVOS_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
TOLERANCE = 1e-4


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors: those of tests/golden, replaced by whole ones where the project's folder is there."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in (FOLDER / "referdino.safetensors", SHARED / "referdino.safetensors"):
        if path.is_file():
            tensors |= load_file(path)
    # Copies are aligned in memory; a last bit may depend on that.
    return {name: tensor.clone() for name, tensor in tensors.items()}


@cache
def released_shapes(group: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the released tensors of a group: a, a_lora, head or g."""
    lines = (FOLDER / "referdino_names.txt").read_text("utf-8").splitlines()
    return {name: tuple(map(int, sizes)) for one, name, *sizes in map(str.split, lines) if one == group}


@cache
def released_tensors(group: str) -> dict[str, Tensor]:
    """The tensors of a group, under their released names. Do not change them."""
    return {name: weight(name, shape) for name, shape in released_shapes(group).items()}


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the tensor `name` that the modules were recorded with."""
    # Copies of a module have the values of the first.
    name = re.sub(r"^transformer\.decoder\.(bbox_embed|ref_point_head)", r"\1", name)
    name = re.sub(r"^(bbox_embed|temporal_decoder)\.\d+", r"\1.0", name)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) >= 2:
        return x / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x


def golden_decoder(queries: int, group: str) -> Any:
    """transformers' decoder of part a: six layers, two levels."""
    from transformers import GroundingDinoConfig
    from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoDecoder

    from rvos_cache.trackers.referdino import hf_state
    from rvos_cache.trackers.referdino.boxes import Mlp

    config = GroundingDinoConfig(
        d_model=256, decoder_layers=6, num_queries=queries, decoder_attention_heads=8, decoder_ffn_dim=512,
        num_feature_levels=2, decoder_n_points=4, dropout=0, attention_dropout=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        decoder = GroundingDinoDecoder(config)
        decoder.bbox_embed = torch.nn.ModuleList(Mlp(256, 256, 256, 4) for _ in range(6))
    state = hf_state(released_tensors(group))
    decoder.load_state_dict({name.removeprefix("model.decoder."): tensor for name, tensor in state.items()})
    return decoder.eval()


def golden_model() -> Any:
    """The whole model of part g."""
    from transformers import GroundingDinoConfig

    from rvos_cache.trackers.referdino import hf_state
    from rvos_cache.trackers.referdino.stages import FourStageGroundingDino

    bert = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = GroundingDinoConfig(num_queries=16, encoder_layers=2, decoder_layers=2, two_stage=True, text_config=bert)
    with torch.random.fork_rng(devices=[]):
        model = FourStageGroundingDino(config)
    missing, unexpected = model.load_state_dict(hf_state(released_tensors("g")), strict=False)
    assert not unexpected
    # GroundingDINO does not read the last norm of Swin.
    assert {name.rpartition(".")[0] for name in missing} == {"model.backbone.conv_encoder.model.swin.layernorm"}
    return model.eval()


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
