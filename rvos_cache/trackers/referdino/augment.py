"""How clips and images are changed while ReferDINO is trained: flips, colours, crops and sizes.

Of the released code (Liang et al., "ReferDINO", ICCV 2025; iSEE-Laboratory/ReferDINO, 9a4cda1), whose transforms are ReferFormer's, but
for two things: left and right are exchanged as words, not as letters ("bright" stays), and colours beyond 0 and 255 are clamped, where
they wrapped around. Boxes are moved with the frames and not made anew from the cut masks.
Letters: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.media.boxes import centre_and_size, last_pixel_boxes
from rvos_cache.media.captions import mirrored_text
from rvos_cache.media.clips import resize_masks, resize_pixels

SIZES_BEFORE_CROP = (400, 500, 600)
"""Short sides of the frames that are cropped; their long side has no limit."""
CROP = (384, 600)
"""Least and largest height and width of a crop, in pixels."""


class Sizes(NamedTuple):
    """Sizes of the frames that a model is trained on. whole, after_crop: short sides, of frames and of crops; longest_whole,
    longest_after_crop: limits of the long side."""

    whole: tuple[int, ...]
    longest_whole: int
    after_crop: tuple[int, ...]
    longest_after_crop: int


_CLIP_SIZES = (288, 320, 352, 392, 416, 448, 480, 512)
CLIP_SIZES = Sizes(_CLIP_SIZES, 640, _CLIP_SIZES, 640)
"""Of clips of MeViS, Ref-YouTube-VOS and Ref-DAVIS."""
IMAGE_SIZES = Sizes(tuple(range(480, 769, 32)), 800, (296, 328, 360, 392, 416, 448, 480, 512), 640)
"""Of images of RefCOCO."""


@dataclass(frozen=True)
class LiveClip:
    """A clip of one expression, as it is read. frames: uint8 RGB (T, H, W, 3); masks: bool (T, H, W), the union of its objects; boxes:
    float32 (T, 4), x0, y0, x1, y1 of the masks in pixels, the last two the indices of the last column and row; sentence."""

    frames: Tensor
    masks: Tensor
    boxes: Tensor
    sentence: str

    @classmethod
    def of(cls, frames: Tensor, masks: Tensor, sentence: str) -> LiveClip:
        """The clip with the boxes of its masks, zeros for an empty one."""
        return cls(frames, masks, last_pixel_boxes(masks), sentence)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.masks.shape[1], self.masks.shape[2]

    def targets(self) -> tuple[Tensor, Tensor]:
        """The boxes (T, 4) as centre x, centre y, width and height, shares of the frame, and which are valid, bool (T,).

        A box without width or height is not valid, and zeros: so is that of an object that is one pixel wide or high, that no pixel
        shows, or that a crop left out. Masks stay as they are.
        """
        valid = (self.boxes[:, 2:] > self.boxes[:, :2]).all(1)
        height, width = self.size
        shares = centre_and_size(self.boxes) / self.boxes.new_tensor([width, height, width, height])
        return shares * valid[:, None], valid


class Colours(NamedTuple):
    """How the colours of one frame change, in this order.

    The released code takes contrast before or behind hue at random, which is the same: no value is clamped in between, and a factor of
    all channels changes neither hue nor saturation.
    """

    brightness: float = 0.0
    """Added to each value of 0 to 255."""
    contrast: float = 1.0
    """Factor of each value."""
    saturation: float = 1.0
    """Factor of the saturation (HSV)."""
    hue: float = 0.0
    """Degrees added to the hue."""
    channels: tuple[int, int, int] = (0, 1, 2)
    """Which channel becomes red, green and blue."""


PERMUTATIONS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def augment_clip(clip: LiveClip, generator: torch.Generator) -> LiveClip:
    """A flip with probability 1/2, colours of each frame, then another size or a crop: what clips of videos are trained with.

    `LiveClip.targets` tells which frames still have a box; a clip without any is to be sampled again.
    """
    return _sized(_colours(_flip(clip, generator), generator), CLIP_SIZES, generator)


def augment_image(clip: LiveClip, generator: torch.Generator) -> LiveClip:
    """A flip with probability 1/2, then another size or a crop: what images are trained with, as clips of one frame."""
    return _sized(_flip(clip, generator), IMAGE_SIZES, generator)


def flip(clip: LiveClip) -> LiveClip:
    """Left and right exchanged in frames, masks, boxes and sentence. The box of columns x0 to x1 is W - x1 to W - x0, as released."""
    x0, y0, x1, y1 = clip.boxes.unbind(1)
    width = clip.size[1]
    boxes = torch.stack([width - x1, y0, width - x0, y1], 1)
    return LiveClip(clip.frames.flip(2), clip.masks.flip(2), boxes, mirrored_text(clip.sentence))


def sample_colours(generator: torch.Generator) -> Colours:
    """Random colours, each kind of change with probability 1/2 (of the channels, one permutation in six is none)."""

    def one(least: float, largest: float, otherwise: float) -> float:
        return _uniform(least, largest, generator) if _coin(generator) else otherwise

    brightness, contrast, saturation, hue = one(-32, 32, 0), one(0.5, 1.5, 1), one(0.5, 1.5, 1), one(-18, 18, 0)
    channels = PERMUTATIONS[_integer(0, len(PERMUTATIONS) - 1, generator)] if _coin(generator) else PERMUTATIONS[0]
    return Colours(brightness, contrast, saturation, hue, channels)


def recolour(frame: NDArray[np.uint8], colours: Colours) -> NDArray[np.uint8]:
    """The frame (H, W, 3), uint8 RGB, with changed colours, rounded and clamped to 0 to 255."""
    x = (frame.astype(np.float32) + colours.brightness) * colours.contrast
    if (colours.saturation, colours.hue) != (1.0, 0.0):
        hsv = cv2.cvtColor(x.astype(np.float32), cv2.COLOR_RGB2HSV)
        hsv[..., 1] *= colours.saturation
        hsv[..., 0] = (hsv[..., 0] + colours.hue) % 360
        x = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return np.rint(x[..., list(colours.channels)]).clip(0, 255).astype(np.uint8)


def resize(clip: LiveClip, size: tuple[int, int]) -> LiveClip:
    """The clip at `size` (h, w)."""
    height, width = clip.size
    scale = clip.boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    return replace(clip, frames=resize_pixels(clip.frames, size), masks=resize_masks(clip.masks, size), boxes=clip.boxes * scale)


def crop(clip: LiveClip, top: int, left: int, size: tuple[int, int]) -> LiveClip:
    """The window of `size` (h, w) of every frame; boxes are cut off at its border."""
    height, width = size
    rows, columns = slice(top, top + height), slice(left, left + width)
    limits = clip.boxes.new_tensor([width, height] * 2)
    boxes = torch.minimum(clip.boxes - clip.boxes.new_tensor([left, top] * 2), limits).clamp(min=0)
    return replace(clip, frames=clip.frames[:, rows, columns], masks=clip.masks[:, rows, columns], boxes=boxes)


def aspect_size(size: tuple[int, int], short_side: int, longest: int | None = None) -> tuple[int, int]:
    """(h, w) of a frame of `size` (H, W) whose shorter side becomes `short_side`, or less, so that the longer one is at most `longest`.

    Rounded as in DETR's code: the short side to the nearest integer, then the long side down.
    """
    least, largest = min(size), max(size)
    if longest is not None and largest / least * short_side > longest:
        short_side = max(1, round(longest * least / largest))
    long_side = int(short_side * largest / least)
    return (short_side, long_side) if size[0] <= size[1] else (long_side, short_side)


def _flip(clip: LiveClip, generator: torch.Generator) -> LiveClip:
    return flip(clip) if _coin(generator) else clip


def _colours(clip: LiveClip, generator: torch.Generator) -> LiveClip:
    """Each frame with colours of its own."""
    frames = [recolour(frame.numpy(), sample_colours(generator)) for frame in clip.frames]
    return replace(clip, frames=torch.from_numpy(np.stack(frames)))


def _sized(clip: LiveClip, sizes: Sizes, generator: torch.Generator) -> LiveClip:
    """Another size; or with probability 1/2 another size, a window of all frames, and another size of that."""
    if _coin(generator):
        return resize(clip, aspect_size(clip.size, _one_of(sizes.whole, generator), sizes.longest_whole))
    clip = resize(clip, aspect_size(clip.size, _one_of(SIZES_BEFORE_CROP, generator)))
    width, height = (_integer(CROP[0], min(side, CROP[1]), generator) for side in clip.size[::-1])
    top, left = _integer(0, clip.size[0] - height, generator), _integer(0, clip.size[1] - width, generator)
    clip = crop(clip, top, left, (height, width))
    return resize(clip, aspect_size(clip.size, _one_of(sizes.after_crop, generator), sizes.longest_after_crop))


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)


def _uniform(least: float, largest: float, generator: torch.Generator) -> float:
    return least + (largest - least) * float(torch.rand((), generator=generator))


def _integer(least: int, largest: int, generator: torch.Generator) -> int:
    return int(torch.randint(least, largest + 1, (), generator=generator))


def _one_of(values: Sequence[int], generator: torch.Generator) -> int:
    return values[_integer(0, len(values) - 1, generator)]
