"""The image side of a frozen CLIP: maps of frames, and the head that projects their means into the space of sentences.

Two kinds of checkpoints have one interface: a CLIP folder that `rvos-cache convert-clip` wrote (ConvNeXt), and a hub name or folder
of transformers' CLIPModel (ViT). Letters: T frames, h w cells of a map, P channels of a pooled vector, D channels of a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from rvos_cache.clip.towers import DEVIATION, HEAD_FILE, IMAGE, MEAN, WHAT, load_image_head, load_image_tower, tower_digest
from rvos_cache.errors import InputError
from rvos_cache.media.geometry import Colour, FrameGeometry
from rvos_cache.media.resize import shortest_edge
from rvos_cache.pretrained import checkpoint_source, load_frozen, load_processor, resolve_checkpoint, weights_digest

HEAD_EPS = 1e-6
"""Of the LayerNorm of a ConvNeXt's image head. Source: timm's ConvNeXt."""
BICUBIC = Image.Resampling.BICUBIC


class ImageHead(nn.Module):
    """Pooled vectors (..., P) -> vectors (..., D) in the space of sentences, not normalised. `forward` reads the last `width` of P.

    logit_scale: float32 (), the logarithm of the factor of cosines.
    """

    logit_scale: Tensor

    def __init__(self, width: int, layers: nn.Module, logit_scale: Tensor) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.register_buffer("logit_scale", logit_scale.detach().float().reshape(()))

    def forward(self, pooled: Tensor) -> Tensor:
        """(..., D) of (..., P)."""
        projected: Tensor = self.layers(pooled[..., -self.width :])
        return projected

    @property
    def digest(self) -> str:
        """Of its weights."""
        return next(iter(weights_digest(self, "head").values()))


class ClipImage:
    """The image tower of a frozen CLIP.

    widths: channels of each map, whose sum is P; strides: input pixels along the side of a cell of each map, finest first;
    weights: {"<name of the checkpoint>/image": digest}; resample: the filter that resizes frames.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    mean: Colour = MEAN
    deviation: Colour = DEVIATION
    resample = Image.Resampling.BILINEAR
    device: torch.device
    weights: dict[str, str]

    def maps(self, images: Tensor) -> list[Tensor]:
        """Maps (T, widths[i], h, w) of the input (T, 3, height, width) of `geometry(...).image`, on `device`."""
        raise NotImplementedError

    def geometry(self, size: tuple[int, int], short_side: int, long_side: int) -> FrameGeometry:
        """Of frames of `size` (H, W) whose aspect ratio is kept. Sides as in `media.resize.shortest_edge`; short_side 0: their own."""
        raise NotImplementedError

    def square(self, size: tuple[int, int], side: int) -> FrameGeometry:
        """Of frames resized to `side` x `side` pixels, whatever their aspect ratio."""
        return self._stretched(size, (side, side))

    def _stretched(self, size: tuple[int, int], resized: tuple[int, int]) -> FrameGeometry:
        return FrameGeometry.stretched(
            size, resized, mean=self.mean, deviation=self.deviation, divisor=self.strides[-1], resample=self.resample
        )


class ConvNextImage(ClipImage):
    """The raw maps of a ConvNeXt's stages, before any norm, at strides 4, 8, 16 and 32. Source: SSA's released code, `clip.py`."""

    def __init__(self, checkpoint: str) -> None:
        self.tower = load_image_tower(checkpoint)
        config = self.tower.config
        self.widths = tuple(config.hidden_sizes)
        self.strides = tuple(config.patch_size << i for i in range(len(self.widths)))
        self.device, self.weights = self.tower.device, tower_digest(self.tower, checkpoint)

    @torch.inference_mode()
    def maps(self, images: Tensor) -> list[Tensor]:
        """As ClipImage."""
        x, maps = self.tower.embeddings(images.to(self.device)), []
        for stage in self.tower.encoder.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def geometry(self, size: tuple[int, int], short_side: int, long_side: int) -> FrameGeometry:
        """As ClipImage; zero-padded at the right and the bottom, as in SSA."""
        return self._stretched(size, shortest_edge(size, short_side, long_side) if short_side else size)


class VitImage(ClipImage):
    """The patch tokens of a CLIPModel's last hidden state, before its last norm, as one map.

    The position embeddings are interpolated by transformers (`interpolate_pos_encoding`) for inputs that are not the square of the
    checkpoint's config. mean, deviation and the filter are those of its preprocessor_config.json, or CLIP's own.
    """

    def __init__(self, checkpoint: str) -> None:
        self.tower = _load_clip_model(checkpoint).vision_model
        config = self.tower.config
        self.widths, self.strides = (config.hidden_size,), (config.patch_size,)
        preprocessing = _preprocessing(checkpoint)
        self.mean, self.deviation, self.resample = preprocessing.mean, preprocessing.deviation, preprocessing.resample
        self.device = next(self.tower.parameters()).device
        self.weights = tower_digest(self.tower, checkpoint)

    @torch.inference_mode()
    def maps(self, images: Tensor) -> list[Tensor]:
        """As ClipImage."""
        h, w = (side // self.strides[0] for side in images.shape[2:])
        hidden = self.tower(pixel_values=images.to(self.device), interpolate_pos_encoding=True).last_hidden_state
        # The first token is the class token.
        return [hidden[:, 1:].transpose(1, 2).unflatten(2, (h, w))]

    def geometry(self, size: tuple[int, int], short_side: int, long_side: int) -> FrameGeometry:
        """As ClipImage, each side rounded to whole patches: every patch attends to the others, so that padding would change them."""
        patch = self.strides[0]
        sides = shortest_edge(size, short_side, long_side) if short_side else size
        h, w = (max(1, round(side / patch)) * patch for side in sides)
        return self._stretched(size, (h, w))

    def square(self, size: tuple[int, int], side: int) -> FrameGeometry:
        """As ClipImage. Raises InputError for a side that is not a multiple of the patch."""
        if side % self.strides[0]:
            raise InputError(
                f"square {side}: this CLIP has patches of {self.strides[0]} pixels; give a multiple: --set square=SIDE"
            )
        return super().square(size, side)


def is_clip_folder(checkpoint: str) -> bool:
    """Whether the checkpoint is a folder that `rvos-cache convert-clip` wrote, else a hub name or folder of a CLIPModel."""
    return (Path(resolve_checkpoint(checkpoint)) / IMAGE).is_dir()


def load_image(checkpoint: str) -> ClipImage:
    """The image tower of a CLIP folder, or of a hub name or folder of a CLIPModel. Raises InputError if it cannot be loaded."""
    return ConvNextImage(checkpoint) if is_clip_folder(checkpoint) else VitImage(checkpoint)


def load_head(checkpoint: str) -> ImageHead:
    """The image head of the same checkpoints, frozen, float32, on the CPU. Raises InputError: it has none, or cannot be loaded."""
    if is_clip_folder(checkpoint):
        return _convnext_head(load_image_head(checkpoint), checkpoint).requires_grad_(False).eval()
    model = _load_clip_model(checkpoint)
    layers = nn.Sequential(model.vision_model.post_layernorm, model.visual_projection)
    return ImageHead(model.config.vision_config.hidden_size, layers, model.logit_scale).requires_grad_(False).eval().cpu()


def head_digest(checkpoint: str) -> str | None:
    """The digest of the image head; None of a CLIP folder without one, as of the CLIP inside a checkpoint of SSA."""
    if is_clip_folder(checkpoint) and not (Path(resolve_checkpoint(checkpoint)) / HEAD_FILE).is_file():
        return None
    return load_head(checkpoint).digest


def _convnext_head(tensors: Mapping[str, Tensor], checkpoint: str) -> ImageHead:
    try:
        width, hidden, out = tensors["norm.weight"].shape[0], tensors["fc1.weight"].shape[0], tensors["fc2.weight"].shape[0]
        norm, fc1, fc2 = nn.LayerNorm(width, HEAD_EPS), nn.Linear(width, hidden), nn.Linear(hidden, out, bias=False)
        norm.load_state_dict({"weight": tensors["norm.weight"], "bias": tensors["norm.bias"]})
        fc1.load_state_dict({"weight": tensors["fc1.weight"], "bias": tensors["fc1.bias"]})
        fc2.load_state_dict({"weight": tensors["fc2.weight"]})
        return ImageHead(width, nn.Sequential(norm, fc1, nn.GELU(), fc2), tensors["logit_scale"])
    except (KeyError, IndexError, RuntimeError) as error:
        message = f"no tensor {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(
            f"{WHAT} {checkpoint!r}: its image head cannot be read ({message:.200}); convert it again: rvos-cache convert-clip "
            "CHECKPOINT --out CLIP"
        ) from error


def _load_clip_model(checkpoint: str) -> Any:
    """The CLIPModel of a hub name or folder. Raises InputError if it is no CLIP."""
    from transformers import AutoConfig, CLIPModel

    config = load_processor(AutoConfig, checkpoint, WHAT)
    if config.model_type != "clip":
        raise InputError(
            f"{WHAT} {checkpoint!r}: its model is {config.model_type!r}, expected CLIP; give a folder that rvos-cache convert-clip "
            "wrote, or a CLIPModel: --set checkpoint=FOLDER"
        )
    return load_frozen(CLIPModel, checkpoint, WHAT)


@dataclass(frozen=True)
class _Preprocessing:
    mean: Colour
    deviation: Colour
    resample: Image.Resampling


def _preprocessing(checkpoint: str) -> _Preprocessing:
    """Of the checkpoint's preprocessor_config.json; where it has none, or leaves something out, CLIP's own.

    Read as JSON: the classes of transformers that read it want torchvision.
    """
    from transformers.utils import cached_file

    source, local_only = checkpoint_source(checkpoint, WHAT, "--set checkpoint=FOLDER")
    name = "preprocessor_config.json"
    try:
        path = cached_file(
            source,
            name,
            local_files_only=local_only,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        values = json.loads(Path(path).read_text("utf-8")) if path else {}
        mean, deviation = (
            tuple(255 * float(value) for value in values[key]) if key in values else default
            for key, default in (("image_mean", MEAN), ("image_std", DEVIATION))
        )
        if len(mean) != 3 or len(deviation) != 3 or min(deviation) <= 0:
            raise ValueError("mean and deviation are not of three colours")
        return _Preprocessing(mean, deviation, Image.Resampling(int(values.get("resample", BICUBIC))))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"{WHAT} {checkpoint!r}: its {name} cannot be read ({line:.200}); copy it again") from error
