"""Steps in parts: a step of many expressions as several micro-batches, whose gradients are added.

Which expressions, frames and augmentations a step has does not depend on the size of the parts: the frames of all clips are
sampled first, and the clips are augmented in order, once, with one generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from rvos_cache.errors import InputError
from rvos_select.data.batch import Batch
from rvos_select.data.clips import ClipSampler
from rvos_select.data.collate import collate
from rvos_select.data.epochs import Step

Normalisers = Callable[[Batch], Mapping[str, float]]


@dataclass(frozen=True)
class MicroBatch:
    """A part of a step.

    name: of the video or of its first expression, for messages; share: what its losses are multiplied by, so that the losses of
    the parts add up to those of the step; step_size: B of the whole step; last: the step ends with it.
    """

    batch: Batch
    name: str
    share: float
    step_size: int
    last: bool


def micro_batches(
    steps: Iterable[Step],
    size: int,
    requires: tuple[str, ...],
    sampler: ClipSampler | None,
    normalisers: Normalisers | None,
) -> Iterator[MicroBatch]:
    """The parts of the steps, of at most `size` expressions (0: a step is one part), each made when it is requested.

    sampler: makes clips; None: whole videos, with the parts `requires`. normalisers: `Selector.normalisers`, None for a selector
    whose losses are all means over the expressions.
    """
    for step in steps:
        yield from _split(step, size or len(step.rows), requires, sampler, normalisers)


def by_step(parts: Iterator[MicroBatch]) -> Iterator[tuple[str, Iterator[MicroBatch]]]:
    """The name and the parts of each step; those of one step are used before the next step is requested."""

    def rest(part: MicroBatch) -> Iterator[MicroBatch]:
        while not part.last:
            part = next(parts)
            yield part

    return ((first.name, chain([first], rest(first))) for first in parts)


def _split(
    step: Step, size: int, requires: tuple[str, ...], sampler: ClipSampler | None, normalisers: Normalisers | None
) -> Iterator[MicroBatch]:
    frames = None if sampler is None else sampler.frames(step.rows)
    parts = [slice(start, start + size) for start in range(0, len(step.rows), size)]

    def make(part: slice, masks_only: bool = False) -> Batch:
        if sampler is None or frames is None:
            return collate(step.rows[part], requires, masks_only=masks_only)
        return sampler.make(step.rows[part], frames[part], masks_only)

    batches: Iterator[Batch] = map(make, parts)
    totals: Mapping[str, float] = {}
    if len(parts) > 1 and normalisers is not None:
        if sampler is None or sampler.augment is None:
            counted: Iterable[Batch] = (make(part, masks_only=True) for part in parts)
        else:
            # The augmentation decides which objects are visible, so the whole step is made first. Its clips hold uint8 frames and no
            # features of a cache, which an augmentation excludes.
            step_batches = list(batches)
            counted = [replace(batch, pixels=None) for batch in step_batches]
            batches = _emptied(step_batches)
        totals = _sums(map(normalisers, counted), step.name)
    for i, (part, batch) in enumerate(zip(parts, batches)):
        sample, row = step.rows[part][0]
        name = sample.expressions[row].key if i else step.name
        share = 1.0 if totals else len(batch) / len(step.rows)
        yield MicroBatch(replace(batch, normalisers=totals), name, share, len(step.rows), i == len(parts) - 1)


def _emptied(batches: list[Batch]) -> Iterator[Batch]:
    """The batches in order, each of which leaves the list, so that it is freed after its use."""
    while batches:
        yield batches.pop(0)


def _sums(counts: Iterable[Mapping[str, float]], name: str) -> dict[str, float]:
    """The sums by name. Raises InputError unless all parts of the step `name` are counted by the same names."""
    sums: dict[str, float] = {}
    for i, each in enumerate(counts):
        if i and each.keys() != sums.keys():
            raise InputError(
                f"{name}: the selector's normalisers(batch) has {sorted(each)} for one micro-batch of a step, {sorted(sums)} for "
                "another; return the same names for every batch"
            )
        if not each:
            return {}
        sums = {key: sums.get(key, 0.0) + value for key, value in each.items()}
    return sums
