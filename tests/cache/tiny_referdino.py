"""A tiny ReferDINO under its released names, on the tiny GroundingDINO, and the same model live."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tiny_grounding_dino import tiny_grounding_dino
from torch import Tensor

from rvos_cache.trackers.referdino import HeadSizes, ReferDinoHead
from rvos_cache.trackers.referdino.lora import lora_layers
from rvos_cache.trackers.referdino.names import RANK, first, in_released, in_transformers

SMALL = {"short_side": 32, "keep_ratio": 0.4}
"""Settings of `gdino-queries` for the tiny checkpoint, whose 20 queries become 8 and 4."""


def tiny_head(model: Any, seed: int = 0, temporal_layers: int = 2) -> ReferDinoHead:
    """A head whose every weight is random, but those that belong to the GroundingDINO `model`."""
    sizes = HeadSizes(
        model.config.d_model,
        model.config.backbone_config.embed_dim,
        temporal_layers,
        48,
        mask_layers=2,
        mask_hidden=40,
        mask_points=4,
    )
    head = ReferDinoHead(sizes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in head.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                # Large, so that masks have edges and differ between queries.
                tensor.copy_((4.0 if "cross_attn" in name or "pyramid" in name else 1.5) * noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(float("norm" in name and name.endswith("weight")) + 0.1 * noise)
    head.box.load_state_dict(model.bbox_embed[0].state_dict())
    head.reference_points_head.load_state_dict(model.model.decoder.reference_points_head.state_dict())
    return head.eval().requires_grad_(False)


def released_state(model: Any, head: ReferDinoHead, lora: float = 0.3, seed: int = 1) -> dict[str, Tensor]:
    """The tensors of `model`, a `FourStageGroundingDino`, and of `head`, as a released file has them, with LoRA beside them.

    lora: size of its random products, relative to the weights. Tensors on the meta device stay there.
    """
    own, state = model.state_dict(), {}
    for name in own:
        released = in_released(name)
        # The last norm of Swin is in no checkpoint.
        if released is not None and released not in state:
            state[released] = torch.cat([own[target] for target in in_transformers(released)])
    for name in head.state():
        for layer in range(model.config.decoder_layers) if name.startswith("temporal_decoder.") else [0]:
            state[name.replace("temporal_decoder.0.", f"temporal_decoder.{layer}.")] = head.state()[name]
    device, width = model.bbox_embed[0].layers[0].weight.device, model.config.text_config.hidden_size
    state["bert.pooler.dense.weight"], state["bert.pooler.dense.bias"] = (
        torch.zeros(s, device=device) for s in ((width,) * 2, width)
    )
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        cells = ((round(state[name].shape[0] ** 0.5) + 1) // 2) ** 2
        state[name.replace("bias_table", "index")] = torch.zeros(cells, cells, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(seed)
    for name in lora_layers(model):
        weight = state[f"{in_released(f'{name}.weight')}"]
        layer = str(in_released(f"{name}.weight")).removesuffix(".weight")
        a, b = (torch.empty(size, device=device) for size in ((RANK, weight.shape[1]), (len(weight), RANK)))
        if device.type != "meta":
            a.normal_(generator=generator).mul_(RANK**0.5 / weight.shape[1] ** 0.5)
            b.normal_(generator=generator).mul_(lora)
        state |= {f"{layer}.lora_A": a, f"{layer}.lora_B": b}
        for copy in {first(layer)} - {layer}:
            state |= {f"{copy}.lora_A": a, f"{copy}.lora_B": b}
    return {name: tensor.clone() for name, tensor in state.items()}


def four_stages(folder: Path, seed: int = 2) -> Any:
    """The GroundingDINO in `folder` with a random norm of its first stage."""
    from rvos_cache.trackers.referdino.convert import load_grounding

    model = load_grounding(str(folder))
    norm = model.model.backbone.conv_encoder.model.hidden_states_norms["stage1"]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.2 * torch.randn(norm.weight.shape, generator=generator))
        norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=generator))
    return model


@lru_cache
def shared_grounding() -> Path:
    """One GroundingDINO, for the tests of a process that do not change it."""
    return tiny_grounding_dino(_fresh_folder())


@lru_cache
def shared_released() -> Path:
    """One released file for it."""
    model = four_stages(shared_grounding())
    path = _fresh_folder() / "tiny_swint.pth"
    torch.save({"model_state_dict": released_state(model, tiny_head(model)), "epoch": 3}, path)
    return path


@lru_cache
def shared_upstream() -> str:
    """That file, converted."""
    from rvos_cache.trackers.referdino.convert import convert_referdino

    return str(convert_referdino(shared_released(), str(shared_grounding()), _fresh_folder() / "upstream").folder)


def _fresh_folder() -> Path:
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="tiny-referdino-"))
    return Path(_FOLDERS[-1].name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
