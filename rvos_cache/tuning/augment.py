"""Augmentation of ReferDINO's training: flips, colours, crops and sizes of a clip.

Source: released code (the transforms of ReferFormer), in its order: flip, colours of each frame, then a size or a crop. Where it is
silent or replaces characters, see `flip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rvos_cache.media.captions import mirrored_text
from rvos_cache.media.clips import resize_masks, resize_pixels
from rvos_cache.trackers.referdino.frame_maps import resized_size

SIZES = {"video": (288, 320, 352, 392, 416, 448, 480, 512), "image": tuple(range(480, 769, 32))}
"""Short sides without a crop."""
LONGEST = {"video": 640, "image": 800}
CROPPED_SIZES = {"video": SIZES["video"], "image": (296, 328, 360, 392, 416, 448, 480, 512)}
"""Short sides after a crop, the longest side at most CROPPED_LONGEST."""
CROPPED_LONGEST = 640
BEFORE_CROP, CROP = (400, 500, 600), (384, 600)
"""Short sides before a crop, and least and largest sides of it."""
BRIGHTNESS, HUE, FACTOR = 32.0, 18.0, (0.5, 1.5)
"""Largest change of brightness and of hue (degrees); least and largest factor of contrast and of saturation."""


@dataclass(frozen=True)
class TuneClip:
    """A clip of one expression. pixels: uint8 (T, H, W, 3); masks: bool (T, H, W), the union of its objects; boxes: float32 (T, 4),
    x0 y0 x1 y1 in pixels, x1 and y1 of the last pixel; zeros where nothing is visible. name: video and expression, for errors."""

    pixels: Tensor
    masks: Tensor
    boxes: Tensor
    sentence: str
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def checked(self) -> TuneClip:
        """With zeros for boxes without area: those of objects that a crop has left outside, or of one column or row of pixels."""
        has_area = (self.boxes[:, 2:] > self.boxes[:, :2]).all(1)
        return replace(self, boxes=self.boxes * has_area[:, None])

    @property
    def valid(self) -> Tensor:
        """bool (T,): the frame shows an object, decided from the boxes alone, as in the released code."""
        return (self.boxes[:, 2:] > self.boxes[:, :2]).all(1)


def augment(clip: TuneClip, kind: str, short_side: int, generator: torch.Generator) -> TuneClip:
    """The clip augmented as `TuneSettings.augment` says."""
    if kind == "none":
        return resize(clip, short_side, None).checked()
    if _chance(generator):
        clip = flip(clip)
    if kind == "video":
        clip = replace(clip, pixels=torch.stack([distort(frame, generator) for frame in clip.pixels]))
    if _chance(generator):
        clip = resize(clip, _choice(SIZES[kind], generator), LONGEST[kind])
    else:
        clip = resize(clip, _choice(BEFORE_CROP, generator), None)
        clip = random_crop(clip, generator)
        clip = resize(clip, _choice(CROPPED_SIZES[kind], generator), CROPPED_LONGEST)
    return clip.checked()


def flip(clip: TuneClip) -> TuneClip:
    """Left and right exchanged, whole words of the sentence too. (The released code exchanges characters: "bright" to "bleft".)"""
    x0, y0, x1, y1 = clip.boxes.unbind(1)
    width = clip.size[1]
    boxes = torch.stack([width - x1, y0, width - x0, y1], 1) * clip.valid[:, None]
    return replace(clip, pixels=clip.pixels.flip(2), masks=clip.masks.flip(2), boxes=boxes, sentence=mirrored_text(clip.sentence))


def resize(clip: TuneClip, short_side: int, longest: int | None) -> TuneClip:
    """The shorter side becomes `short_side`, or less, so that the longer one is at most `longest`."""
    size = resized_size(clip.size, short_side, longest)
    (h, w), (height, width) = size, clip.size
    boxes = clip.boxes * torch.tensor([w / width, h / height] * 2)
    return replace(clip, pixels=resize_pixels(clip.pixels, size), masks=resize_masks(clip.masks, size), boxes=boxes)


def random_crop(clip: TuneClip, generator: torch.Generator) -> TuneClip:
    """A window of CROP sides, the same in all frames; the whole of a side that is shorter."""
    h, w = (_integer(min(CROP[0], side), min(CROP[1], side), generator) for side in clip.size)
    top, left = _integer(0, clip.size[0] - h, generator), _integer(0, clip.size[1] - w, generator)
    boxes = torch.minimum(clip.boxes - torch.tensor([left, top] * 2), torch.tensor([w, h] * 2)).clamp(min=0)
    window = (slice(None), slice(top, top + h), slice(left, left + w))
    return replace(clip, pixels=clip.pixels[window], masks=clip.masks[window], boxes=boxes * clip.valid[:, None])


def distort(frame: Tensor, generator: torch.Generator) -> Tensor:
    """Another brightness, contrast, saturation, hue and order of the channels of a frame uint8 (H, W, 3), each with probability 0.5."""
    x = frame.float()
    if _chance(generator):
        x = x + _uniform(-BRIGHTNESS, BRIGHTNESS, generator)
    contrast_first = _chance(generator)
    if contrast_first and _chance(generator):
        x = x * _uniform(*FACTOR, generator)
    saturation = _uniform(*FACTOR, generator) if _chance(generator) else 1.0
    degrees = _uniform(-HUE, HUE, generator) if _chance(generator) else 0.0
    if saturation != 1 or degrees:
        x = change_colour(x, saturation, degrees)
    if not contrast_first and _chance(generator):
        x = x * _uniform(*FACTOR, generator)
    if _chance(generator):
        x = x[..., torch.randperm(3, generator=generator)]
    return x.round().clamp(0, 255).to(torch.uint8)


def change_colour(x: Tensor, saturation: float, degrees: float) -> Tensor:
    """RGB (..., 3) with the saturation of HSV multiplied and the hue turned; the value, the largest channel, stays."""
    value, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True)
    range_ = value - low
    safe = range_.clamp(min=1e-6)
    r, g, b = x.split(1, -1)
    hue = torch.where(value == r, (g - b) / safe % 6, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = hue + degrees / 60
    # As in OpenCV's float images, saturation is not limited to 1.
    chroma = range_ * saturation
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _chance(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _integer(least: int, largest: int, generator: torch.Generator) -> int:
    return int(torch.randint(least, largest + 1, (), generator=generator))


def _choice(values: Sequence[int], generator: torch.Generator) -> int:
    return values[_integer(0, len(values) - 1, generator)]
