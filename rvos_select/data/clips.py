"""Frames of clips: for each expression some frames of its video, near one in which an object of it is visible.

Ten random frames of a video are those of Fang et al. (CVPR 2025, section 4.2); that they lie near one frame in which an object of
the expression is visible is from the code of MeViS's LMPM and DsHmp. With `neighbours` clips are those of the released code of
ReferDINO (Liang et al., ICCV 2025).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rvos_cache.settings import Settings
from rvos_select.data.augment import Augmentation
from rvos_select.data.batch import Batch
from rvos_select.data.collate import Row, collate
from rvos_select.data.samples import VideoSample

Frames = NDArray[np.intp]
"""Numbers of frames of a video."""


class ClipSettings(Settings):
    """How frames of a video make a clip."""

    frames: int = Field(default=10, ge=1)
    """T, frames of a clip. Source: DMVS section 4.2."""
    within: int = Field(default=10, ge=0)
    """Largest distance in frames of the others from the first frame sampled; 0: anywhere in the video. Source: MeViS's LMPM."""
    anywhere: float = Field(default=0.0, ge=0, le=1)
    """Probability that the others of a clip lie anywhere in the video, whatever `within` says. DeRVOS: 0.5, because prediction
    reads clips that are spread over the whole video."""
    neighbours: int = Field(default=0, ge=0)
    """Not 0: one frame before and one behind the first one sampled belong to the clip, each 1 to so many of the frames that can be
    sampled away (the first or last of them at a border); the others lie outside of these, as far as `within` allows. ReferDINO: 3,
    with within=0. A clip of one frame has no neighbours."""
    reverse: float = Field(default=0.0, ge=0, le=1)
    """Probability that a clip runs backwards. Sentences stay as they are. ReferDINO: 0.3."""

    @model_validator(mode="after")
    def _has_room_for_neighbours(self) -> ClipSettings:
        if self.neighbours and self.frames == 2:
            raise ValueError("neighbours: a clip of 2 frames has no room for one before and one behind; frames=3 or more")
        return self


@dataclass(frozen=True)
class ClipSampler:
    """Makes batches of clips of `settings.frames` frames, sampled with `generator`.

    A frame may be sampled when it is annotated and all arrays that are read by frames hold it. The first is sampled among those
    in which an object of the expression is visible, where it has any; the others around it without replacement or, where there are
    too few, with; with `settings.neighbours` first one on either side of it.
    """

    settings: ClipSettings
    generator: torch.Generator
    requires: Sequence[str] = ()
    augment: Augmentation | None = None

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """The batch of `rows`. Raises InputError when frames cannot be read, and ValueError when none can be sampled."""
        return self.make(rows, self.frames(rows))

    def frames(self, rows: Sequence[Row]) -> list[list[int]]:
        """Frames of the clip of each expression. Raises ValueError where none can be sampled."""
        return [self.sample_frames(sample, row) for sample, row in rows]

    def make(self, rows: Sequence[Row], frames: Sequence[Sequence[int]], masks_only: bool = False) -> Batch:
        """The batch of clips of these frames, augmented. masks_only: see `collate`; it excludes an augmentation."""
        return collate(rows, self.requires, frames=frames, augment=self.augment, generator=self.generator, masks_only=masks_only)

    def sample_frames(self, sample: VideoSample, row: int) -> list[int]:
        """Frames of the video, ascending, or descending in a clip that runs backwards."""
        visible = sample.visible_frames(row)
        if not len(visible):
            raise ValueError(
                f"{sample.expressions[row].key}: no frame of it can be sampled; leave it out with `with_visible_rows`"
            )
        first = visible[self._integer(0, len(visible) - 1)]
        usable, count = sample.usable_frames, self.settings.frames - 1
        within = 0 if self._happens(self.settings.anywhere) else self.settings.within
        near = usable[np.abs(usable - first) <= (within or len(usable) + int(usable[-1]))]
        if self.settings.neighbours and count:
            before, behind = self._neighbours(usable, first)
            others = np.array([before, behind, *self._far(near, before, behind, count - 2)])
        else:
            rest = near[near != first]
            others = self._without(rest, count) if len(rest) >= count else self._with(np.append(rest, first), count)
        frames = sorted([int(first), *map(int, others)])
        if self._happens(self.settings.reverse):
            frames.reverse()
        return frames

    def _neighbours(self, usable: Frames, first: int) -> tuple[int, int]:
        """A frame before and one behind the first one sampled; that one itself where it is the video's first or last."""
        place, last = int(np.searchsorted(usable, first)), len(usable) - 1
        before, behind = (self._integer(1, self.settings.neighbours) for _ in range(2))
        return int(usable[max(0, place - before)]), int(usable[min(last, place + behind)])

    def _far(self, near: Frames, start: int, end: int, count: int) -> Frames:
        """`count` of the frames `near` before `start`, or at `end` and behind it, as in the released code.

        Where those are not more than `count`, any of `near`; where these are fewer, each of them and some again.
        """
        outside = near[(near < start) | (near >= end)]
        if len(outside) > count:
            return self._without(outside, count)
        if len(near) >= count:
            return self._without(near, count)
        return np.concatenate([near, self._with(near, count - len(near))])

    def _without(self, pool: Frames, count: int) -> Frames:
        """`count` frames of `pool` without replacement."""
        return pool[torch.randperm(len(pool), generator=self.generator)[:count].numpy()]

    def _with(self, pool: Frames, count: int) -> Frames:
        """`count` frames of `pool` with replacement."""
        return pool[torch.randint(len(pool), (count,), generator=self.generator).numpy()]

    def _happens(self, probability: float) -> bool:
        """True with this probability. For 0 no random number is sampled: clips stay what they are without the option."""
        return probability > 0 and float(torch.rand((), generator=self.generator)) < probability

    def _integer(self, least: int, largest: int) -> int:
        return int(torch.randint(least, largest + 1, (1,), generator=self.generator))


def with_visible_rows(samples: Sequence[VideoSample]) -> list[VideoSample]:
    """The samples without the expressions of which no frame can be sampled; warns in one line how many those are."""
    out, absent = [], []
    for sample in samples:
        rows = [row for row in range(len(sample.expressions)) if len(sample.visible_frames(row))]
        absent += [e.key for row, e in enumerate(sample.expressions) if row not in rows]
        out.append(sample if len(rows) == len(sample.expressions) else sample.with_rows(rows))
    if absent:
        warnings.warn(
            f"{len(absent)} expressions have no object visible in a frame that can be sampled and are left out; first {absent[0]}",
            stacklevel=2,
        )
    return out
