"""A tiny BEiT-3 under its released names, with weights made by a rule, its SentencePiece model, and their conversion.

The names and shapes are those of torchscale's `BEiT3`, as the recorded values confirm; nothing is shared with the converter.
"""

from __future__ import annotations

import math
import shutil
import zlib
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
SPM = FOLDER / "beit3.spm"
"""A SentencePiece model of 268 pieces, of English sentences about things that move."""
TOKENS = 268 + 2
"""Ids of its tokens: `<pad>` and `<mask>` are no pieces."""
VOCABULARY = TOKENS + 8
WIDTH, LAYERS, GRID, LONGEST = 64, 2, 4, 62
HEADS = {"mlm_head.weight": (VOCABULARY, WIDTH), "mlm_head.bias": (VOCABULARY,), "mim_head.weight": (32, WIDTH)}
"""Tensors beside the encoder, as a checkpoint of pre-training has them."""
MASK_TOKEN = "beit3.vision_embed.mask_token"
WIDE = (
    "beit3.text_embed.weight", "beit3.encoder.embed_positions.A.weight", "beit3.encoder.embed_positions.B.weight",
    "beit3.vision_embed.cls_token",
)  # fmt: skip
"""Weights of a larger scale, so that tokens and positions differ."""


def shapes(
    width: int = WIDTH, layers: int = LAYERS, vocabulary: int = VOCABULARY, grid: int = GRID, longest: int = LONGEST
) -> dict[str, tuple[int, ...]]:
    """Released name -> shape of the encoder's tensors; grid and longest: patches along a side and words of the position tables."""
    out: dict[str, tuple[int, ...]] = {
        "beit3.text_embed.weight": (vocabulary, width),
        MASK_TOKEN: (1, 1, width),
        "beit3.vision_embed.cls_token": (1, 1, width),
        "beit3.vision_embed.proj.weight": (width, 3, 16, 16),
        "beit3.vision_embed.proj.bias": (width,),
        "beit3.encoder.embed_positions.A.weight": (grid**2 + 3, width),
        "beit3.encoder.embed_positions.B.weight": (longest + 2, width),
    }

    def linear(name: str, outputs: int, inputs: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, channels: int) -> None:
        out[f"{name}.weight"] = out[f"{name}.bias"] = (channels,)

    for expert in "AB":
        for i in range(layers):
            layer = f"beit3.encoder.layers.{i}"
            for part in "qkv":
                linear(f"{layer}.self_attn.{part}_proj.{expert}", width, width)
            linear(f"{layer}.self_attn.out_proj.{expert}", width, width)
            norm(f"{layer}.self_attn.inner_attn_ln.{expert}", width)
            norm(f"{layer}.self_attn_layer_norm.{expert}", width)
            norm(f"{layer}.final_layer_norm.{expert}", width)
            linear(f"{layer}.ffn.{expert}.fc1", 4 * width, width)
            linear(f"{layer}.ffn.{expert}.fc2", width, 4 * width)
            norm(f"{layer}.ffn.{expert}.ffn_layernorm", 4 * width)
        norm(f"beit3.encoder.layer_norm.{expert}", width)
    return out


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the tensor `name`; the rule that the recorded values were made by (README of the golden values)."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name in WIDE:
        return 0.6 * x
    if len(shape) >= 2:
        return x / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x


def official_tensors(
    width: int = WIDTH, layers: int = LAYERS, vocabulary: int = VOCABULARY, grid: int = GRID, longest: int = LONGEST
) -> dict[str, Tensor]:
    """The encoder's tensors under their released names."""
    return {name: weight(name, shape) for name, shape in shapes(width, layers, vocabulary, grid, longest).items()}


def write_spm(path: Path) -> Path:
    """Write the SentencePiece model that TOKENS belongs to."""
    return Path(shutil.copyfile(SPM, path))


def write_tiny_beit3(folder: Path, width: int = WIDTH) -> Path:
    """Convert the tiny checkpoint to the folder `folder`, which must not exist, and return it.

    D = `width`, 2 layers, positions of 4 x 4 patches (frames of 64 pixels), sentences of at most 62 tokens.
    """
    from rvos_cache.text.beit3.convert import convert_beit3

    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = folder.with_name(f"{folder.name}.pth")
    torch.save({"model": official_tensors(width)}, checkpoint)
    convert_beit3(checkpoint, SPM, folder)
    checkpoint.unlink()
    return folder
