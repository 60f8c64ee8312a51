"""The clips that ReferDINO is trained on, from a dataset with ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError, warn_once
from rvos_cache.media.boxes import centre_and_size, last_pixel_boxes
from rvos_cache.system.progress import tracked
from rvos_cache.trackers.grounding_dino import make_caption
from rvos_cache.trackers.referdino.frame_maps import MULTIPLE
from rvos_cache.trackers.referdino.tune_settings import TuneSettings
from rvos_cache.trackers.referdino_losses import Truth
from rvos_cache.trackers.sam2.preprocess import normalise
from rvos_cache.tuning.augment import TuneClip, augment
from rvos_cache.types import Expression, GroundTruth, Video

ATTEMPTS = 100
"""Clips that are sampled, until one shows an object, before training gives up."""
KEPT = 64
"""Videos whose ground truth stays in memory."""


@dataclass(frozen=True)
class Item:
    """An expression and the anchor frame of its clip."""

    expression: Expression
    anchor: int


@dataclass(frozen=True)
class LiveBatch:
    """Clips in the form that the model reads, see `LiveReferDino.forward`, with their targets. names: of the clips, for errors."""

    images: Tensor
    real: Tensor
    ids: Tensor
    words: Tensor
    truth: Truth
    names: tuple[str, ...]

    def to(self, device: torch.device) -> LiveBatch:
        """The batch on `device`."""
        images, real, ids, words = (x.to(device, non_blocking=True) for x in (self.images, self.real, self.ids, self.words))
        return LiveBatch(images, real, ids, words, Truth(*(x.to(device) for x in self.truth)), self.names)


def check_ground_truth(dataset: Dataset) -> str:
    """Root and split of a dataset, as errors name it. Raises InputError for a split without ground truth."""
    where = f"{dataset.root}, split {dataset.split}"
    if not dataset.has_ground_truth:
        raise InputError(f"{where}: has no ground truth to train on; give another --split")
    return where


class ClipSource:
    """The items of a split, and clips of them. Raises InputError for a split without ground truth or without a target."""

    def __init__(self, dataset: Dataset, settings: TuneSettings) -> None:
        where = check_ground_truth(dataset)
        self.dataset, self.settings = dataset, settings
        self.items: list[Item] = []
        self._lengths: dict[str, int] = {}
        for video_id in tracked(dataset.video_ids(), "list"):
            self.items += self._items(video_id)
        if not self.items:
            raise InputError(f"{where}: no expression has a target; give another --split")
        short = sum(length < settings.frames for length in self._lengths.values())
        if short:
            warn_once(
                f"{where}: {short} of {len(self._lengths)} videos are shorter than frames={settings.frames}, "
                f"the longest has {max(self._lengths.values())}; clips of those repeat frames"
            )
        self._truth = lru_cache(KEPT)(dataset.ground_truth)
        # Data sets are not made for several threads; only pictures, one file each, are read by several.
        self._one_at_a_time = Lock()

    def __len__(self) -> int:
        return len(self.items)

    def _items(self, video_id: str) -> list[Item]:
        expressions = {e.expression_id: e for e in self.dataset.expressions(video_id) if e.targets}
        samples = self.dataset.samples(video_id)
        if samples is not None:
            return [Item(expressions[s.expression_id], s.t) for s in samples if s.expression_id in expressions]
        self._lengths[video_id] = len(self.dataset.video(video_id))
        anchors = range(0, self._lengths[video_id], self.settings.anchor_every)
        return [Item(expression, t) for expression in expressions.values() for t in anchors]

    def clip(self, number: int, generator: torch.Generator) -> TuneClip:
        """A clip of item `number`, or of another one if no frame of it shows an object. Raises InputError after 100 such clips."""
        for _ in range(ATTEMPTS):
            clip = self._sample(self.items[number], generator)
            if clip is not None and bool(clip.valid.any()):
                return clip
            number = int(torch.randint(len(self.items), (), generator=generator))
        raise InputError(
            f"{self.dataset.root}, split {self.dataset.split}: none of {ATTEMPTS} clips shows an object of its expression; check the "
            "masks, or give a larger --set frames"
        )

    def _sample(self, item: Item, generator: torch.Generator) -> TuneClip | None:
        """None if no frame is annotated."""
        expression, settings = item.expression, self.settings
        with self._one_at_a_time:
            truth = self._truth(expression.video_id)
            video = self.dataset.video(expression.video_id)
        assert truth is not None and expression.targets is not None
        usable = np.flatnonzero(truth.annotated)
        if not len(usable):
            return None
        place = int(np.abs(usable - item.anchor).argmin())
        frames = [int(usable[i]) for i in clip_frames(len(usable), place, settings, generator)]
        with nullcontext() if len(video.files) == len(video) else self._one_at_a_time:
            clip = read_clip(video, truth, expression, frames)
        return augment(clip, settings.augment, settings.short_side, generator)


def clip_frames(length: int, anchor: int, settings: TuneSettings, generator: torch.Generator) -> list[int]:
    """The frames of a clip among `length`: the anchor, one before and one after it, the others outside of those.

    Where there are too few others, any frames; where the video has fewer than those, all of it and some again. Ascending, or
    descending with probability `settings.reverse`. Source: released code.
    """
    if settings.frames == 1:
        return [anchor]
    before, after = (int(torch.randint(1, settings.neighbours + 1, (), generator=generator)) for _ in range(2))
    near = [anchor, max(0, anchor - before), min(length - 1, anchor + after)]
    count = settings.frames - len(near)
    outside = [*range(min(near)), *range(max(near), length)]
    pool = outside if len(outside) > count else list(range(length))
    order = torch.randperm(len(pool), generator=generator)[:count].tolist()
    order += torch.randint(len(pool), (count - len(order),), generator=generator).tolist()
    frames = sorted([*near, *(pool[i] for i in order)])
    if settings.frames > 1 and float(torch.rand((), generator=generator)) < settings.reverse:
        frames.reverse()
    return frames


def read_clip(video: Video, truth: GroundTruth, expression: Expression, frames: Sequence[int]) -> TuneClip:
    """The frames with the union of the expression's objects, not augmented."""
    objects = truth.indices(expression.targets or ())
    masks = np.zeros((len(frames), *video.size), bool)
    for mask, t in zip(masks, frames):
        for index in objects:
            mask |= truth.masks.decode(index, t)
    pixels = torch.from_numpy(np.stack([video.read(t) for t in frames]))
    target = torch.from_numpy(masks)
    sentence = " ".join(expression.text.lower().split())
    name = f"video {expression.video_id}, expression {expression.expression_id}"
    return TuneClip(pixels, target, last_pixel_boxes(target), sentence, name)


def collate(clips: Sequence[TuneClip], tokenizer: Any, max_length: int) -> LiveBatch:
    """The clips in one batch: frames padded with zeros at the right and at the bottom to multiples of 32, captions to the longest.

    Boxes are shares of the frame without its padding, as in GroundingDINO.
    """
    count, frames = len(clips), len(clips[0].pixels)
    height, width = (-(-max(clip.size[axis] for clip in clips) // MULTIPLE) * MULTIPLE for axis in (0, 1))
    images = torch.zeros(count, frames, 3, height, width)
    masks = torch.zeros(count, frames, height, width, dtype=torch.bool)
    real = torch.zeros(count, height, width, dtype=torch.bool)
    boxes = torch.zeros(count, frames, 4)
    for b, clip in enumerate(clips):
        h, w = clip.size
        images[b, :, :, :h, :w] = normalise(clip.pixels.permute(0, 3, 1, 2))
        masks[b, :, :h, :w], real[b, :h, :w] = clip.masks, True
        boxes[b] = centre_and_size(clip.boxes) / torch.tensor([w, h] * 2)
    captions = [make_caption(clip.sentence, tokenizer, max_length) for clip in clips]
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    truth = Truth(boxes, torch.stack([clip.valid for clip in clips]), masks, real)
    rows = real.repeat_interleave(frames, 0)
    return LiveBatch(
        images.flatten(0, 1),
        rows,
        tokens["input_ids"],
        tokens["attention_mask"].bool(),
        truth,
        tuple(clip.name for clip in clips),
    )
