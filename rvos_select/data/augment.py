"""Augmentation of clips: one hook that changes pixels, masks and the sentence of an expression together.

An augmentation is a function `(Clip, torch.Generator) -> Clip`, named "package.module:function" in the training settings or one of
`AUGMENTATIONS`. It sees what a live model reads; tokens, words and features of a cache belong to the unchanged frames, so a selector
that reads any of them is refused (see `check_augmentation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rvos_cache.datasets.captions import mirrored_text
from rvos_cache.errors import InputError
from rvos_cache.plugins import resolve_function, type_text


@dataclass(frozen=True)
class Clip:
    """The clip of one expression. pixels: uint8 (T, H, W, 3); truth: bool (A, T, H, W), masks of its objects; sentence."""

    pixels: Tensor
    truth: Tensor
    sentence: str

    @property
    def boxes(self) -> Tensor:
        """float32 (A, T, 4): x0, y0, x1, y1 of each mask in pixels, x1 and y1 exclusive; zeros where an object is not visible."""
        return mask_boxes(self.truth)


Augmentation = Callable[[Clip, torch.Generator], Clip]


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes float32 (..., 4), x0, y0, x1, y1 with exclusive ends, of bool masks (..., H, W); zeros for an empty mask."""
    out = []
    for any_pixel in (masks.any(-2), masks.any(-1)):
        size = any_pixel.shape[-1]
        first = any_pixel.int().argmax(-1)
        last = size - any_pixel.flip(-1).int().argmax(-1)
        out.append((first, last))
    (x0, x1), (y0, y1) = out
    return torch.stack([x0, y0, x1, y1], -1).float() * masks.flatten(-2).any(-1)[..., None]


def horizontal_flip(clip: Clip, generator: torch.Generator) -> Clip:
    """Swaps left and right in pixels, masks and sentence, with probability 0.5."""
    if torch.rand((), generator=generator) < 0.5:
        return clip
    return replace(clip, pixels=clip.pixels.flip(2), truth=clip.truth.flip(3), sentence=mirrored_text(clip.sentence))


AUGMENTATIONS = {"horizontal_flip": "rvos_select.data.augment:horizontal_flip"}


def load_augmentation(names: Sequence[str]) -> Augmentation | None:
    """The augmentations `names`, one after another; None for none. Raises InputError for what is no augmentation."""
    if not names:
        return None
    steps = {name: resolve_function(AUGMENTATIONS, name, "augmentation", ("clip", "generator")) for name in names}

    def augment(clip: Clip, generator: torch.Generator) -> Clip:
        for name in names:
            clip = steps[name](clip, generator)
            if not isinstance(clip, Clip):
                raise InputError(
                    f"augmentation {name}: returned {type_text(clip)}, expected a Clip; see rvos_select.data.augment"
                )
        return clip

    return augment


def check_augmentation(names: Sequence[str], selector: Any, clips: bool) -> None:
    """Raises InputError where augmented frames would meet cached values of the unchanged ones."""
    if not names:
        return
    if not clips:
        raise InputError("augment changes clips; --set batch=clip, or leave it out")
    cached = [name for name in selector.requires if name not in ("pixels", "truth")]
    if "pixels" not in selector.requires or not selector.encodes_text or cached:
        reason = f"it requires {cached[0]}" if cached else "it reads cached words or no pixels"
        raise InputError(
            f"augment changes frames and sentences, but {type(selector).__name__} also reads cached values of the unchanged ones "
            f"({reason}); leave augment out, or train on the split's mirror image"
        )
