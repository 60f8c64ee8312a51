"""The augmentations of clips that are built in: flips, crops and sizes, rotations of still clips.

Pixels are resampled with bilinear interpolation (antialiased, as Pillow's), masks take the value of the nearest pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.media.captions import mirrored_text
from rvos_cache.media.clips import resize_masks, resize_pixels
from rvos_cache.media.resize import shortest_edge
from rvos_select.data.augment import Clip, keeps_sentence

CROP_PROBABILITY = 0.5
SIZES_BEFORE_CROP, LONGEST_BEFORE_CROP = (400, 500, 600), 1333
CROP = (384, 600)
"""Least and largest height and width of a crop, in pixels."""
SIZES, LONGEST = tuple(range(288, 513, 32)), 768
"""Short sides, and the longest side, of the clips that a module is trained on."""
DEGREES = 15.0
"""Largest angle of the last frame of a rotation."""


def horizontal_flip(clip: Clip, generator: torch.Generator) -> Clip:
    """Swaps left and right in pixels, masks and sentence, with probability 0.5."""
    flipped = horizontal_flip_frames(clip, generator)
    return clip if flipped is clip else replace(flipped, sentence=mirrored_text(clip.sentence))


@keeps_sentence
def horizontal_flip_frames(clip: Clip, generator: torch.Generator) -> Clip:
    """Swaps left and right in pixels and masks, with probability 0.5, and keeps the sentence."""
    if torch.rand((), generator=generator) < 0.5:
        return clip
    return replace(clip, pixels=clip.pixels.flip(2), truth=clip.truth.flip(3))


@keeps_sentence
def crop_and_resize(clip: Clip, generator: torch.Generator) -> Clip:
    """Another size for the whole clip and, with probability 1/2, a crop that glides over it first. Source: SSA's released code.

    With a crop: the short side is one of 400, 500 and 600, the long one at most 1333, then a window of 384 to 600 pixels in each
    direction, or the whole of a shorter side. Its corner has a random place in the first frame and another in the last, and
    moves linearly in between; how the released code moves it is not known. Always: the short side is one of 288, 320, …, 512, the
    long one at most 768.
    """
    if torch.rand((), generator=generator) < CROP_PROBABILITY:
        clip = _resize(clip, SIZES_BEFORE_CROP, LONGEST_BEFORE_CROP, generator)
        size = clip.pixels.shape[1], clip.pixels.shape[2]
        window = tuple(_integer(min(CROP[0], side), min(CROP[1], side), generator) for side in size)
        corners = [_glide(side - length, len(clip.pixels), generator) for side, length in zip(size, window)]
        clip = _crop(clip, corners[0], corners[1], (window[0], window[1]))
    return _resize(clip, SIZES, LONGEST, generator)


@keeps_sentence
def rotate_over_clip(clip: Clip, generator: torch.Generator) -> Clip:
    """Rotates the frames of a still clip about their centre, so that it moves; other clips are not changed. Source: SSA, for images.

    The angle grows linearly from 0 in the first frame to a random one of -15° to 15° in the last. Outside the frame is black.
    """
    angle = DEGREES * (2 * torch.rand((), generator=generator).item() - 1)
    frames = len(clip.pixels)
    if not clip.still or frames == 1:
        return clip
    pixels, truth = torch.empty_like(clip.pixels), torch.empty_like(clip.truth)
    for t in range(frames):
        grid = _rotation(math.radians(angle * t / (frames - 1)), clip.pixels.shape[1], clip.pixels.shape[2])
        image = clip.pixels[t].permute(2, 0, 1)[None].float()
        rotated = F.grid_sample(image, grid, mode="bilinear", align_corners=False)[0]
        pixels[t] = rotated.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        masks = clip.truth[:, t][None].float()
        truth[:, t] = F.grid_sample(masks, grid, mode="nearest", align_corners=False)[0] > 0.5
    return replace(clip, pixels=pixels, truth=truth)


def _resize(clip: Clip, short_sides: Sequence[int], longest: int, generator: torch.Generator) -> Clip:
    short_side = short_sides[_integer(0, len(short_sides) - 1, generator)]
    size = shortest_edge((clip.pixels.shape[1], clip.pixels.shape[2]), short_side, longest)
    return replace(clip, pixels=resize_pixels(clip.pixels, size), truth=resize_masks(clip.truth, size))


def _crop(clip: Clip, tops: Sequence[int], lefts: Sequence[int], window: tuple[int, int]) -> Clip:
    """The window (h, w) of each frame t whose corner is at tops[t], lefts[t]."""
    parts = [(slice(y, y + window[0]), slice(x, x + window[1])) for y, x in zip(tops, lefts)]
    pixels = torch.stack([frame[part] for frame, part in zip(clip.pixels, parts)])
    truth = torch.stack([clip.truth[:, t][:, y, x] for t, (y, x) in enumerate(parts)], 1)
    return replace(clip, pixels=pixels, truth=truth)


def _glide(room: int, frames: int, generator: torch.Generator) -> list[int]:
    """A position of 0 to `room` for each frame, from a random first one linearly to a random last one."""
    first, last = _integer(0, room, generator), _integer(0, room, generator)
    return [round(first + (last - first) * t / max(1, frames - 1)) for t in range(frames)]


def _integer(least: int, largest: int, generator: torch.Generator) -> int:
    return int(torch.randint(least, largest + 1, (), generator=generator))


def _rotation(angle: float, height: int, width: int) -> Tensor:
    """Where each pixel of a frame rotated counter-clockwise by `angle` (radians) comes from: (1, H, W, 2) for `grid_sample`."""
    y = torch.arange(height) + 0.5 - height / 2
    x = torch.arange(width) + 0.5 - width / 2
    y, x = torch.meshgrid(y, x, indexing="ij")
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([(cos * x - sin * y) * 2 / width, (sin * x + cos * y) * 2 / height], -1)[None]
