"""A tiny ConvNeXt CLIP under open_clip's names, with weights made by a rule, and its conversion.

The names and shapes are those of open_clip's `CLIP` with a ConvNeXt of timm, as tests/golden/make_clip.py confirms; nothing is shared
with the converter, which reads them.
"""

from __future__ import annotations

import gzip
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from golden_values import load_golden
from torch import Tensor

WIDTHS, DEPTHS = (8, 16, 24, 32), (1, 1, 2, 1)
PROJECTION, LAYERS, POSITIONS = 16, 2, 77
MERGES = 500
"""Number of merges of the tokenizer, the first ones of open_clip's file; with 512 bytes and 2 special tokens it has 1014 tokens."""
TOKENS = MERGES + 514
IMAGE_HEAD = ("visual.trunk.head.", "visual.head.", "logit_scale")
"""Prefixes of what a released checkpoint of SSA may lack."""


@cache
def golden() -> dict[str, Tensor]:
    """The recorded tensors, see `golden_values.load_golden`."""
    return load_golden("clip.safetensors")


def shapes(text_width: int = 64) -> dict[str, tuple[int, ...]]:
    """Name in open_clip -> shape."""
    out: dict[str, tuple[int, ...]] = {
        "positional_embedding": (POSITIONS, text_width),
        "text_projection": (text_width, PROJECTION),
        "logit_scale": (),
        "token_embedding.weight": (TOKENS, text_width),
    }

    def layer(name: str, *shape: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = shape, shape[:1]

    layer("ln_final", text_width)
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}"
        out[f"{block}.attn.in_proj_weight"], out[f"{block}.attn.in_proj_bias"] = (3 * text_width, text_width), (3 * text_width,)
        layer(f"{block}.attn.out_proj", text_width, text_width)
        layer(f"{block}.ln_1", text_width)
        layer(f"{block}.ln_2", text_width)
        layer(f"{block}.mlp.c_fc", 4 * text_width, text_width)
        layer(f"{block}.mlp.c_proj", text_width, 4 * text_width)
    trunk = "visual.trunk"
    layer(f"{trunk}.stem.0", WIDTHS[0], 3, 4, 4)
    layer(f"{trunk}.stem.1", WIDTHS[0])
    for i, (width, depth) in enumerate(zip(WIDTHS, DEPTHS)):
        if i:
            layer(f"{trunk}.stages.{i}.downsample.0", WIDTHS[i - 1])
            layer(f"{trunk}.stages.{i}.downsample.1", width, WIDTHS[i - 1], 2, 2)
        for j in range(depth):
            block = f"{trunk}.stages.{i}.blocks.{j}"
            out[f"{block}.gamma"] = (width,)
            layer(f"{block}.conv_dw", width, 1, 7, 7)
            layer(f"{block}.norm", width)
            layer(f"{block}.mlp.fc1", 4 * width, width)
            layer(f"{block}.mlp.fc2", width, 4 * width)
    layer(f"{trunk}.head.norm", WIDTHS[-1])
    layer("visual.head.mlp.fc1", 2 * PROJECTION, WIDTHS[-1])
    out["visual.head.mlp.fc2.weight"] = (PROJECTION, 2 * PROJECTION)
    return out


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a tensor: random, of a scale that keeps that of a layer's inputs, the same on every machine."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name == "logit_scale":
        return torch.tensor(math.log(100.0))
    if name.endswith("embedding") or name.startswith("token_embedding"):
        return 0.5 * x
    if name == "text_projection":
        return x / math.sqrt(shape[0])
    if len(shape) > 1:
        return x / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.2 * x if name.endswith("weight") else 0.3 * x


def open_clip_tensors(text_width: int = 64) -> dict[str, Tensor]:
    """Every tensor of the checkpoint under its name in open_clip."""
    return {name: weight(name, shape) for name, shape in shapes(text_width).items()}


def ssa_tensors(with_head: bool = False) -> dict[str, Tensor]:
    """The same inside a checkpoint of SSA, with some of its own tensors."""
    out = {
        f"backbone.clip_model.{name}": tensor
        for name, tensor in open_clip_tensors().items()
        if with_head or not name.startswith(IMAGE_HEAD)
    }
    return out | {"resizer.fc.weight": torch.ones(4, 4), "criterion.empty_weight": torch.ones(2)}


def write_merges(path: Path) -> Path:
    """Write the tiny vocabulary in the format of open_clip's file."""
    path.write_bytes(gzip.compress(bytes(golden()["input.merges"].tolist())))
    return path


def write_tiny_clip(folder: Path, text_width: int = 64) -> Path:
    """Convert the tiny checkpoint to the CLIP folder `folder`, which must not exist, and return it.

    Stages of 8, 16, 24 and 32 channels, 16 projected channels, 1014 tokens.
    """
    from rvos_cache.clip.convert import convert_clip

    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint, merges = folder.with_name(f"{folder.name}.pt"), folder.with_name(f"{folder.name}-merges.gz")
    torch.save({"state_dict": open_clip_tensors(text_width)}, checkpoint)
    convert_clip(checkpoint, folder, str(write_merges(merges)))
    checkpoint.unlink()
    merges.unlink()
    return folder


def write_hub_clip(folder: Path, tokenizer: Any) -> Path:
    """Write a tiny CLIPModel of transformers with its tokenizer; its projection has 12 channels."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
