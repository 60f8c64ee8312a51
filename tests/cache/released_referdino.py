"""A tiny ReferDINO under its released names, on the tiny GroundingDINO, and the same model live."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_grounding_dino import tiny_grounding_dino
from torch import Tensor
from transformers import AutoTokenizer

from rvos_cache.trackers.referdino import HeadSizes, ReferDinoHead, align, prune_decoder, upsampled
from rvos_cache.trackers.referdino.enhancer import Enhancer
from rvos_cache.trackers.referdino.lora import lora_layers
from rvos_cache.trackers.referdino.names import RANK, first, in_released, in_transformers
from rvos_cache.types import Video

SMALL: dict[str, Any] = {"short_side": 32, "keep_ratio": 0.4}
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


RELEASED_SINGLE = 2 * (2 * (6 + 18) + 4)
"""Tensors of the enhancer of `single_frame_file`: two copies of two blocks and their norms."""


@lru_cache
def single_frame_file() -> Path:
    """A released file of images: its enhancer has the values of a new one."""
    torch.manual_seed(7)
    new = Enhancer(64, 48, 2).state_dict()
    state = dict(torch.load(shared_released(), weights_only=True)["model_state_dict"])
    for name in [name for name in state if name.startswith("temporal_decoder.")]:
        state[name] = new[name.split(".", 2)[2]].clone()
    path = _fresh_folder() / "a2d_tiny.pth"
    torch.save({"model_state_dict": state, "epoch": 1}, path)
    return path


@lru_cache
def shared_upstream() -> str:
    """That file, converted."""
    from rvos_cache.trackers.referdino.convert import convert_referdino

    return str(convert_referdino(shared_released(), str(shared_grounding()), _fresh_folder() / "upstream").folder)


# The released `infer`, as its specification states it


@lru_cache
def live_modules() -> tuple[Any, Any]:
    """GroundingDINO with the products of LoRA in its weights, and the head, from the tensors of the released file."""
    released = torch.load(shared_released(), weights_only=True)["model_state_dict"]
    model = four_stages(shared_grounding())
    head = tiny_head(model)
    with torch.no_grad():
        for name in lora_layers(model):
            layer = str(in_released(f"{name}.weight")).removesuffix(".weight")
            model.get_submodule(name).weight += released[f"{layer}.lora_B"] @ released[f"{layer}.lora_A"] / RANK
    head.reference_points_head.load_state_dict(model.model.decoder.reference_points_head.state_dict())
    return model, head


def live_frame(model: Any, video: Video, t: int, ids: Tensor, keep: float) -> dict[str, Tensor]:
    """One frame: the whole model, whose decoder's inputs then go through the pruned decoder."""
    h, w = video.size
    short, long = SMALL["short_side"], int(SMALL["short_side"] * max(h, w) / min(h, w))
    resized = Image.fromarray(video.read(t)).resize((long, short) if w >= h else (short, long), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)[None] / 255
    image = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    calls: list[dict[str, Any]] = []
    hook = model.model.decoder.register_forward_pre_hook(lambda _, __, kwargs: calls.append(kwargs), with_kwargs=True)
    model(image, ids)
    hook.remove()
    inputs = calls[0]
    layer = prune_decoder(
        model.model.decoder,
        hidden=inputs["inputs_embeds"],
        memory=inputs["vision_encoder_hidden_states"],
        real=inputs["vision_encoder_attention_mask"],
        reference=inputs["reference_points"],
        shapes=inputs["spatial_shapes_list"],
        valid_ratios=inputs["valid_ratios"],
        text=inputs["text_encoder_hidden_states"],
        text_mask=~inputs["text_encoder_attention_mask"],
        keep=keep,
    )[-1]
    shapes, memory = inputs["spatial_shapes_list"], inputs["vision_encoder_hidden_states"]
    parts = torch.split(memory, [h * w for h, w in shapes], 1)
    levels = {f"s{8 << i}": part.transpose(1, 2).unflatten(2, shape) for i, (part, shape) in enumerate(zip(parts[:3], shapes))}
    return {
        "hs": layer.hs,
        "reference": layer.reference,
        "text": inputs["text_encoder_hidden_states"],
        "s4": model.stage1,
        **levels,
    }


@torch.inference_mode()
def live(video: Video, text: str) -> dict[str, Tensor]:
    """One pass over the frames, one of the tracker, one of the enhancer, then the masks; everything in float32.

    By track: hs (Q, T, C), reference and boxes (Q, T, 4), raw, presence of hs, scores of the enhanced queries (Q, T), masks
    (Q, T, H, W); and text (T, L, C).
    """
    model, head = live_modules()
    ids = AutoTokenizer.from_pretrained(shared_grounding())(f"{text}.", return_tensors="pt")["input_ids"]
    frames = [live_frame(model, video, t, ids, SMALL["keep_ratio"]) for t in range(len(video))]
    x = {name: torch.cat([frame[name] for frame in frames]) for name in frames[0]}
    places = align(x["hs"][None], x["text"][None], alpha=0.1, confidence="code_minmax")[0]
    hs, reference = (value.take_along_dim(places[..., None], 1) for value in (x["hs"], x["reference"]))
    queries = head.enhance(hs[None], x["text"][None, :, 0])[0] if len(video) > 1 else hs
    features = head.features([x[name] for name in ("s4", "s8", "s16", "s32")])
    real, mask = torch.ones_like(features[:, 0], dtype=torch.bool), torch.ones(x["text"].shape[:2], dtype=torch.bool)
    masks = upsampled(head.mask_logits(queries, reference, features, real, x["text"], mask), video.size)
    presence, scores = (head.logits(rows[None], x["text"][None], mask[None])[0].sigmoid() for rows in (hs, queries))
    values = {"hs": hs, "reference": reference, "raw": places, "presence": presence, "boxes": head.boxes(queries, reference)}
    values |= {"scores": scores}
    return {name: value.transpose(0, 1) for name, value in {**values, "masks": masks}.items()} | {"text": x["text"]}


def _fresh_folder() -> Path:
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="tiny-referdino-"))
    return Path(_FOLDERS[-1].name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
