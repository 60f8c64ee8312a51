"""The frozen CLIP that live SSA runs: its image tower with the adapters inside, and its text tower.

Letters: F frames, B expressions, L words, D their channels, H W pixels of the input (multiples of 32).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rvos_cache.clip.towers import (
    DEVIATION,
    IMAGE,
    MEAN,
    TEXT,
    encode_texts,
    load_image_tower,
    load_text_tower,
    load_tokenizer,
    tower_digest,
)
from rvos_cache.errors import InputError
from rvos_cache.media.geometry import DIVISOR
from rvos_cache.pretrained import resolve_checkpoint
from rvos_cache.system.text_files import read_text
from rvos_select.selectors.frozen import FrozenPart

IMAGE_PART, TEXT_PART = "clip_image", "clip_text"
"""Names among the selector's frozen parts."""


class Text(NamedTuple):
    """What CLIP makes of B sentences. sentence: (B, D), of the last token, EOT; words: (B, L, D); mask: bool (B, L)."""

    sentence: Tensor
    words: Tensor
    mask: Tensor

    def of(self, row: int, frames: int) -> Text:
        """Of the expression `row`, once for each of F frames; without its padding."""
        length = int(self.mask[row].sum())
        words, mask = self.words[row, :length], self.mask[row, :length]
        return Text(self.sentence[row].expand(frames, -1), words.expand(frames, -1, -1), mask.expand(frames, -1))


def text_of(words: Tensor, lengths: Tensor, longest: int) -> Text:
    """The sentence and the first `longest` words of words (B, L, D) with `lengths` (B,) real ones, the last of which is EOT."""
    rows = torch.arange(len(words), device=words.device)
    sentence = words[rows, lengths - 1]
    length = min(longest, int(lengths.max()))
    mask = torch.arange(length, device=words.device)[None] < lengths[:, None]
    return Text(sentence, words[:, :length], mask)


class TextTower(nn.Module):
    """CLIP's text tower and its tokenizer."""

    def __init__(self, tower: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.tower, self.tokenizer = tower, tokenizer

    @torch.no_grad()
    def forward(self, sentences: Sequence[str], longest: int) -> Text:
        """The text of B sentences, in float32 whatever the autocast."""
        with torch.autocast(next(self.tower.parameters()).device.type, enabled=False):
            return text_of(*encode_texts(self.tower, self.tokenizer, sentences), longest)


def image_part(folder: str, stage_channels: Sequence[int], drop_path: float) -> FrozenPart:
    """The image tower of the CLIP folder, with stochastic depth in training: 0 in the first block, `drop_path` in the last.

    It is refused unless its stages have `stage_channels`.
    """

    def load(checkpoint: str) -> nn.Module:
        tower = load_image_tower(checkpoint)
        widths = tuple(tower.config.hidden_sizes)
        if widths != tuple(stage_channels):
            raise InputError(
                f"{checkpoint}: its stages have {list(widths)} channels, the selector {list(stage_channels)}; give its own CLIP: "
                f"--set config.clip=FOLDER, or train with config.stage_channels={list(widths)}"
            )
        set_drop_path(tower, drop_path)
        tower_module: nn.Module = tower
        return tower_module

    def digest(tower: nn.Module) -> str:
        return next(iter(tower_digest(tower, folder).values()))

    return FrozenPart(IMAGE_PART, folder, load, digest, trains_mode=True)


def text_part(folder: str, word_channels: int) -> FrozenPart:
    """The text tower of the CLIP folder. It is refused unless its words have `word_channels`."""

    def load(checkpoint: str) -> nn.Module:
        tower = load_text_tower(checkpoint)
        if tower.config.projection_dim != word_channels:
            raise InputError(
                f"{checkpoint}: its words have {tower.config.projection_dim} channels, the selector {word_channels}; give its own "
                "CLIP: --set config.clip=FOLDER"
            )
        return TextTower(tower, load_tokenizer(checkpoint))

    def digest(part: nn.Module) -> str:
        return next(iter(tower_digest(part.tower, folder).values()))

    return FrozenPart(TEXT_PART, folder, load, digest)


def text_digest(folder: str) -> str:
    """The digest of the text tower of the CLIP folder, which a text cache has in its card."""
    return next(iter(tower_digest(load_text_tower(folder), folder).values()))


def set_drop_path(tower: Any, rate: float, last_stage: Any = None) -> None:
    """Give each block of a ConvNextModel its stochastic depth, growing linearly to `rate` (Huang et al., ECCV 2016).

    last_stage: one that replaces the tower's own.
    """
    from transformers.models.convnext.modeling_convnext import ConvNextDropPath

    stages = [*tower.encoder.stages]
    if last_stage is not None:
        stages[-1] = last_stage
    blocks = [block for stage in stages for block in stage.layers]
    for i, block in enumerate(blocks):
        own = rate * i / max(1, len(blocks) - 1)
        block.drop_path = ConvNextDropPath(own) if own else nn.Identity()


def clip_sizes(folder: str) -> dict[str, Any]:
    """`stage_channels` and `word_channels` of a CLIP folder, from its config files. Raises InputError for another folder."""
    if not folder:
        raise InputError("selector ssa: which CLIP? give the folder that rvos-cache convert-clip wrote: --set config.clip=FOLDER")
    path = Path(resolve_checkpoint(folder))
    try:
        image = json.loads(read_text(path / IMAGE / "config.json"))
        widths, depths = image["hidden_sizes"], image["depths"]
        words = json.loads(read_text(path / TEXT / "config.json"))["projection_dim"]
        blocks = depths[-1]
    except (OSError, ValueError, LookupError, TypeError, InputError) as error:
        raise InputError(
            f"{folder}: expected a folder of rvos-cache convert-clip, with image/ and text/ "
            f"({type(error).__name__}: {error}); --set config.clip=FOLDER"
        ) from error
    return {"stage_channels": widths, "word_channels": words, "last_stage_blocks": blocks}


def new_last_stage(stage_channels: Sequence[int], blocks: int) -> nn.Module:
    """A fourth stage of a ConvNextModel with random weights."""
    from transformers import ConvNextConfig
    from transformers.models.convnext.modeling_convnext import ConvNextStage

    stage: nn.Module = ConvNextStage(
        ConvNextConfig(), in_channels=stage_channels[2], out_channels=stage_channels[3], depth=blocks
    )
    return stage


def stages(
    adapters: nn.ModuleList,
    trunk: Any,
    images: Tensor,
    text: Text,
    wiring: Literal["inline", "side"] = "inline",
    last_stage: Any = None,
    checkpointing: bool = False,
) -> list[Tensor]:
    """Maps of strides 4, 8, 16 and 32, each as its adapter returns it, or without adapters as the tower does.

    trunk: a ConvNextModel; images (F, 3, H, W); text: of F frames; wiring: whether the next stage reads the adapter's output;
    last_stage: replaces the tower's own; checkpointing: stages are computed again in the backward pass.
    """
    x = trunk.embeddings(images)
    layers = [*trunk.encoder.stages]
    if last_stage is not None:
        layers[-1] = last_stage
    out = []
    for i, layer in enumerate(layers):
        again = checkpointing and x.requires_grad
        x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        adapted = adapters[i](x, *text) if len(adapters) else x
        out.append(adapted)
        if wiring == "inline":
            x = adapted
    return out


def normalised(pixels: Tensor) -> Tensor:
    """CLIP's input float32 (F, 3, H, W) of pixels (F, h, w, 3) uint8 RGB: normalised, then zeros at the right and at the bottom."""
    mean, deviation = (torch.tensor(values, device=pixels.device) for values in (MEAN, DEVIATION))
    images = ((pixels.float() - mean) / deviation).permute(0, 3, 1, 2)
    return F.pad(images, padding(pixels.shape[1], pixels.shape[2]))


def padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Left, right, top and bottom padding of frames, so that both sides are multiples of the coarsest stride."""
    return 0, -width % DIVISOR, 0, -height % DIVISOR
