"""Recorded values of ReferDINO's released modules (iSEE-Laboratory/ReferDINO, 9a4cda1), and their weights; see `golden_values`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import golden_values
import torch
from golden_values import TOLERANCE, cut, load_golden, load_shapes, relative_error
from torch import Tensor

__all__ = ["TOLERANCE", "cut"]


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors, see `golden_values.load_golden`."""
    return load_golden("referdino.safetensors")


@cache
def released_shapes(group: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the released tensors of a group: a, a_lora, head or g."""
    return load_shapes("referdino_names.txt", group)


@cache
def released_tensors(group: str) -> dict[str, Tensor]:
    """The tensors of a group, under their released names. Do not change them."""
    return {name: weight(name, shape) for name, shape in released_shapes(group).items()}


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the tensor `name` that the modules were recorded with."""
    # Copies of a module have the values of the first.
    name = re.sub(r"^transformer\.decoder\.(bbox_embed|ref_point_head)", r"\1", name)
    name = re.sub(r"^(bbox_embed|temporal_decoder)\.\d+", r"\1.0", name)
    return golden_values.weight(name, shape)


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


def error(name: str, value: Tensor) -> float:
    """The largest difference from the recorded value, relative to it where that is above 1."""
    return relative_error(value, golden()[name])
