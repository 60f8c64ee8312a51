"""Batches of clips: any expressions, each with some frames of its video in which it can be seen.

Ten random frames of a video are those of Fang et al. (CVPR 2025, section 4.2); that they lie near one frame in which an object of
the expression is visible is from the code of MeViS's LMPM and DsHmp.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.settings import Settings
from rvos_select.data.batch import Batch
from rvos_select.data.samples import OVERLAP_OF_VIDEO, VideoSample, overlaps, pad_words, word_parts

T = TypeVar("T")
Picked = Sequence[tuple[VideoSample, int]]
"""Expressions: each a video and its row among the video's expressions."""


class ClipSettings(Settings):
    """How frames of a video make a clip."""

    frames: int = Field(default=10, ge=1)
    """T."""
    within: int = Field(default=10, ge=0)
    """Frames that the others may lie from the first one drawn; 0: anywhere in the video."""


class Clips:
    """Joins expressions as clips of `settings.frames` frames, drawn from `generator`.

    A frame may be drawn when it is annotated and all arrays that are read by frames hold it. One is drawn among those that show
    an object of the expression, where it has any; the others around it without replacement, or, where there are too few, with.
    """

    def __init__(self, settings: ClipSettings, generator: torch.Generator) -> None:
        self.settings, self.generator = settings, generator

    def __call__(self, picked: Picked, requires: Sequence[str] = ()) -> Batch:
        """The batch of `picked`. Raises InputError when frames cannot be read, and ValueError when none can be drawn."""
        return clip_batch(picked, [self.draw(sample, row) for sample, row in picked], requires)

    def draw(self, sample: VideoSample, row: int) -> list[int]:
        """Frames of the video, ascending."""
        first = shown_frames(sample, row)
        if not len(first):
            raise ValueError(f"{sample.expressions[row].key}: no frame of it can be drawn; leave it out with `seen`")
        middle = first[int(torch.randint(len(first), (1,), generator=self.generator))]
        allowed = usable_frames(sample)
        near = np.abs(allowed - middle) <= (self.settings.within or len(allowed) + int(allowed[-1]))
        others, wanted = allowed[near & (allowed != middle)], self.settings.frames - 1
        if len(others) >= wanted:
            chosen = others[torch.randperm(len(others), generator=self.generator)[:wanted].numpy()]
        else:
            pool = np.append(others, middle)
            chosen = pool[torch.randint(len(pool), (wanted,), generator=self.generator).numpy()]
        return sorted([int(middle), *map(int, chosen)])


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made in a thread while the one before it is used: a GPU need not wait for the disk."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def usable_frames(sample: VideoSample) -> NDArray[np.intp]:
    """The frames that are annotated and that every array read by frames holds, ascending."""
    assert sample.overlap is not None
    usable = sample.overlap.annotated.copy()
    for stored in sample.frames.values():
        usable[np.setdiff1d(np.arange(len(usable)), stored.kept)] = False
    return np.flatnonzero(usable)


def shown_frames(sample: VideoSample, row: int) -> NDArray[np.intp]:
    """The usable frames that show an object of the expression; all of them where it has no object."""
    assert sample.overlap is not None and sample.named is not None
    own, usable = list(sample.named[row]), usable_frames(sample)
    return usable[np.any(sample.overlap.gt_area[own][:, usable] > 0, axis=0)] if own else usable


def seen(samples: Sequence[VideoSample]) -> list[VideoSample]:
    """The samples without the expressions of which no frame can be drawn; warns, in one line, how many those are."""
    out, lost = [], []
    for sample in samples:
        kept = [row for row in range(len(sample.expressions)) if len(shown_frames(sample, row))]
        lost += [e.key for row, e in enumerate(sample.expressions) if row not in kept]
        out.append(sample if len(kept) == len(sample.expressions) else _with(sample, kept))
    if lost:
        warnings.warn(
            f"{len(lost)} expressions show none of their objects in a frame that can be drawn and are left out; first {lost[0]}",
            stacklevel=2,
        )
    return out


def _with(sample: VideoSample, kept: Sequence[int]) -> VideoSample:
    """The sample with the expressions `kept` alone."""
    rows = torch.tensor(kept, dtype=torch.long)
    return replace(
        sample,
        expressions=tuple(sample.expressions[row] for row in kept),
        words=tuple(sample.words[row] for row in kept),
        candidates=sample.candidates[rows],
        target=None if sample.target is None else sample.target[rows],
        named=None if sample.named is None else tuple(sample.named[row] for row in kept),
    )


def clip_batch(picked: Picked, frames: Sequence[Sequence[int]], requires: Sequence[str] = ()) -> Batch:
    """Expressions with T frames of their videos each, padded to the longest N and L. Raises InputError when one is damaged."""
    at = [list(chosen) for chosen in frames]
    n = max(sample.tokens.shape[0] for sample, _ in picked)
    words, word_mask = pad_words([sample.words[row] for sample, row in picked])
    presence = [_padded(s.presence[:, t].float(), n) for (s, _), t in zip(picked, at)] if "presence" in requires else None
    targets = [None if s.target is None else _padded(s.target[row], n) for s, row in picked]
    names = {name: None for sample, _ in picked for name in sample.frames}
    return Batch(
        tokens=torch.stack([_padded(s.tokens[:, t].float(), n) for (s, _), t in zip(picked, at)]),
        frame_mask=torch.ones(len(picked), len(at[0]), dtype=torch.bool),
        track_mask=torch.stack([_padded(s.candidates[row], n) for s, row in picked]),
        words=words,
        word_mask=word_mask,
        target=None if None in targets else torch.stack(targets),  # type: ignore[arg-type]
        presence=None if presence is None else torch.stack(presence),
        **word_parts(picked, words.shape[1], requires),
        features={name: _stacked(name, picked, at) for name in picked[0][0].features},
        frames={name: tuple(s.frames[name].take(t) for (s, _), t in zip(picked, at)) for name in names},
        overlap=overlaps(picked, None if OVERLAP_OF_VIDEO in requires else at),
        truth=tuple(_truth(s, row, t) for (s, row), t in zip(picked, at)) if "truth" in requires else None,
        sizes=tuple(s.size for s, _ in picked),
    )


def _padded(x: Tensor, n: int) -> Tensor:
    """x (N, ...) with zeros behind, (n, ...)."""
    out = x.new_zeros(n, *x.shape[1:])
    out[: len(x)] = x
    return out


def _stacked(name: str, picked: Picked, frames: Sequence[Sequence[int]]) -> Tensor:
    """The feature of each video, the clip's frames where it has an axis of frames; each axis padded with zeros to its longest."""
    parts = [s.features[name] for s, _ in picked]
    axis = picked[0][0].time.get(name)
    if axis is not None:
        parts = [x.index_select(axis, torch.tensor(t)) for x, t in zip(parts, frames)]
    out = parts[0].new_zeros(len(parts), *(max(sizes) for sizes in zip(*(x.shape for x in parts))))
    for place, x in zip(out, parts):
        place[tuple(slice(0, size) for size in x.shape)] = x
    return out


def _truth(sample: VideoSample, row: int, frames: Sequence[int]) -> Tensor:
    """bool (A, T, H, W): the masks of the expression's objects. Raises InputError when the answers are hidden."""
    if sample.truth is None or sample.named is None:
        raise InputError(f"{sample.expressions[row].key}: its answers are hidden; clips with masks need a split that shows them")
    masks, drawn = sample.truth.masks, dict[tuple[int, int], NDArray[np.bool_]]()
    out = np.zeros((len(sample.named[row]), len(frames), *sample.size), bool)
    for a, k in enumerate(sample.named[row]):
        for place, t in enumerate(frames):
            if (k, t) not in drawn:
                drawn[k, t] = masks.decode(k, t)
            out[a, place] = drawn[k, t]
    return torch.from_numpy(out)
