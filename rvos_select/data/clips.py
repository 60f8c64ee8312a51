"""Frames of clips: for each expression some frames of its video, near one in which an object of it is visible.

Ten random frames of a video are those of Fang et al. (CVPR 2025, section 4.2); that they lie near one frame in which an object of
the expression is visible is from the code of MeViS's LMPM and DsHmp.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from rvos_cache.settings import Settings
from rvos_select.data.augment import Augmentation
from rvos_select.data.batch import Batch
from rvos_select.data.collate import Row, collate
from rvos_select.data.samples import VideoSample


class ClipSettings(Settings):
    """How frames of a video make a clip."""

    frames: int = Field(default=10, ge=1)
    """T, frames of a clip. Source: DMVS section 4.2."""
    within: int = Field(default=10, ge=0)
    """Largest distance in frames of the others from the first frame sampled; 0: anywhere in the video. Source: MeViS's LMPM."""


@dataclass(frozen=True)
class ClipSampler:
    """Makes batches of clips of `settings.frames` frames, sampled with `generator`.

    A frame may be sampled when it is annotated and all arrays that are read by frames hold it. The first is sampled among those
    in which an object of the expression is visible, where it has any; the others around it without replacement or, where there are
    too few, with.
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
        """The batch of clips of these frames, augmented. masks_only: see `collate`."""
        return collate(rows, self.requires, frames=frames, augment=self.augment, generator=self.generator, masks_only=masks_only)

    def sample_frames(self, sample: VideoSample, row: int) -> list[int]:
        """Frames of the video, ascending."""
        visible = sample.visible_frames(row)
        if not len(visible):
            raise ValueError(
                f"{sample.expressions[row].key}: no frame of it can be sampled; leave it out with `with_visible_rows`"
            )
        first = visible[int(torch.randint(len(visible), (1,), generator=self.generator))]
        usable = sample.usable_frames
        near = np.abs(usable - first) <= (self.settings.within or len(usable) + int(usable[-1]))
        others, count = usable[near & (usable != first)], self.settings.frames - 1
        if len(others) >= count:
            chosen = others[torch.randperm(len(others), generator=self.generator)[:count].numpy()]
        else:
            pool = np.append(others, first)
            chosen = pool[torch.randint(len(pool), (count,), generator=self.generator).numpy()]
        return sorted([int(first), *map(int, chosen)])


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
