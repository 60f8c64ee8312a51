"""SSA's live form: frames of a clip or of a whole video to queries, scores and masks.

A clip is computed by itself, at its own size: no padding mask exists, so that padding to the size of another clip would change it
(the released code has one clip on each GPU). Letters: T frames, t of a chunk, Q queries, C channels, h w cells of the stride-4 map,
H W pixels, K layers of the frame decoder that are handed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.clip.towers import DEVIATION, MEAN
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.media.resize import resize_frame
from rvos_select.data.batch import FrameArray
from rvos_select.selectors.ssa.clip import Text, normalised, padding
from rvos_select.selectors.ssa.frame_decoder import FrameDecoded
from rvos_select.selectors.ssa.losses import ClipOutput
from rvos_select.selectors.ssa.pixel_decoder import PixelDecoded

if TYPE_CHECKING:
    from rvos_select.selectors.ssa.selector import Ssa

MASK_CHUNK = 5
"""Frames whose masks are in memory at a time. Source: SSA's released code."""


class Decoded(NamedTuple):
    """The frame part of some frames of one expression."""

    pixels: PixelDecoded
    frames: FrameDecoded


def decode_frames(ssa: Ssa, images: Tensor, text: Text) -> Decoded:
    """images (t, 3, H, W) normalised, sides multiples of 32; text: of one expression (`Text.of`)."""
    sentence = ssa.text_projection(text.sentence[:1]).expand(len(images), -1)
    maps = ssa.stages(ssa.trunk, images, *text)
    pixels = ssa.pixel_decoder(maps, sentence)
    return Decoded(pixels, ssa.frame_decoder(pixels.levels, pixels.mask_features, pixels.text))


def clip_output(ssa: Ssa, pixels: Tensor, text: Text) -> ClipOutput:
    """What the losses read of one clip: pixels (T, H, W, 3) uint8, text: of one expression and T frames."""
    decoded = decode_frames(ssa, normalised(pixels), text)
    queries = decoded.frames.queries[-ssa.config.handed_on :]
    count = len(queries)
    linked, order = ssa.video.link(ssa.video.project(queries))
    enhanced = ssa.video.enhance(linked)
    sentences = decoded.pixels.text.expand(count, -1, -1)
    layers = ssa.video.decode(ssa.video.first_queries(enhanced, sentences), enhanced, sentences)
    logits, mask_embed, clip_embed = ssa.video.heads(layers)
    return ClipOutput(
        decoded.frames.logits[:, None],
        decoded.frames.masks[:, None],
        logits[:, :, None],
        mask_embed[:, :, None],
        ssa.mask_features(decoded.pixels.map)[None],
        ssa.video.frame_embed(linked)[:, None],
        clip_embed[-1][:, None],
        order[:, None],
    )


def clip_truth(truth: Tensor) -> Tensor:
    """Masks (A, T, H, W) of objects as CLIP's input has them: zeros at the right and at the bottom."""
    return F.pad(truth, padding(truth.shape[2], truth.shape[3]))


def resized(pixels: Tensor, geometry: FrameGeometry) -> Tensor:
    """Frames (t, H, W, 3) uint8 at the size of CLIP's input without its padding, by Pillow as in detectron2."""
    if tuple(pixels.shape[1:3]) == geometry.resized:
        return pixels
    frames = [resize_frame(frame, geometry.resized, geometry.resample) for frame in pixels.cpu().numpy()]
    return torch.from_numpy(np.stack(frames))


def geometry_of(ssa: Ssa, size: tuple[int, int]) -> FrameGeometry:
    """The geometry of frames of `size` (H, W) in prediction."""
    return FrameGeometry.of(size, ssa.config.short_side, ssa.config.long_side, mean=MEAN, deviation=DEVIATION)


@dataclass
class InputFrames:
    """The frames of a video at the size of CLIP's input, read and resized once for all expressions where they fit.

    pixels: the frames as they are stored, of which the first `length` are real; keep: bytes that may stay in memory.
    """

    pixels: FrameArray
    length: int
    geometry: FrameGeometry
    device: torch.device
    keep: int
    _parts: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.length

    def images(self, frames: range) -> Tensor:
        """(t, 3, H, W): CLIP's input of some frames."""
        if frames.start not in self._parts:
            part = resized(self.pixels[frames.start : frames.stop].cpu(), self.geometry)
            if len(self) * part[0].numel() > self.keep:
                return normalised(part.to(self.device))
            self._parts[frames.start] = part
        return normalised(self._parts[frames.start].to(self.device))


@dataclass
class Answer:
    """The video queries of one expression of a whole video, and what their masks are made of.

    logits: (Q,), the logit of p(referred); mask_embed: (Q, C).
    """

    ssa: Ssa
    frames: InputFrames
    text: Text
    size: tuple[int, int]
    logits: Tensor
    mask_embed: Tensor
    features: list[Tensor]

    def masks(self, queries: Tensor) -> Iterator[Tensor]:
        """The masks of the K queries marked in bool (1, Q): bool (K, t, H, W), chunk after chunk.

        Mask features are those of the scores where they are kept, else they are computed again.
        """
        embed = self.mask_embed[queries[0]]
        geometry = replace(self.frames.geometry, size=self.size)
        for i, part in enumerate(chunks(len(self.frames), self.ssa.config.chunk)):
            features = self.features[i] if self.features else mask_features(self.ssa, self.frames, self.text, part)
            for few in features.split(MASK_CHUNK):
                yield torch.stack([geometry.enlarge(torch.einsum("kc,chw->khw", embed, maps)) > 0 for maps in few], 1)


def chunks(length: int, size: int) -> list[range]:
    """The frames 0 to `length` in parts of `size`."""
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def mask_features(ssa: Ssa, frames: InputFrames, text: Text, part: range) -> Tensor:
    """(t, C, h, w): the mask features of some frames, for the video queries."""
    images, own = frames.images(part), text.of(0, len(part))
    sentence = ssa.text_projection(own.sentence[:1]).expand(len(part), -1)
    features: Tensor = ssa.mask_features(ssa.pixel_decoder(ssa.stages(ssa.trunk, images, *own), sentence).map)
    return features


def answer(ssa: Ssa, frames: InputFrames, text: Text, size: tuple[int, int]) -> Answer:
    """One expression of a whole video. text: of that expression alone; size: (H, W) of its masks."""
    queries, sentences, features = [], [], []
    height, width = frames.geometry.cells()
    fits = 4 * len(frames) * ssa.config.width * height * width <= ssa.config.keep_bytes
    for part in chunks(len(frames), ssa.config.chunk):
        decoded = decode_frames(ssa, frames.images(part), text.of(0, len(part)))
        queries.append(decoded.frames.queries[-1])
        sentences.append(decoded.pixels.text)
        if fits:
            features.append(ssa.mask_features(decoded.pixels.map))
    video, of_frames = ssa.video, torch.cat(sentences)[None]
    enhanced = video.enhance(video.link(video.project(torch.cat(queries)[None]))[0])
    last = video.decode(video.first_queries(enhanced, of_frames), enhanced, of_frames)[-1, 0]
    logits, mask_embed, _ = video.heads(last)
    return Answer(ssa, frames, text, size, (logits[:, 0] - logits[:, 1]).float(), mask_embed, features)
