"""Mirrored splits: a second training set from the first, with frames, masks and sentences mirrored from left to right.

Every dataset has the split `<split>-mirror`. A training run takes its cache and that of `<split>` together (`--cache` of each).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets.base import Dataset
from rvos_cache.datasets.samples import Sample
from rvos_cache.masks import RleMasks
from rvos_cache.media.captions import mirrored_text
from rvos_cache.types import Expression, GroundTruth, Video

SUFFIX = "-mirror"
"""Appended to the names of the split, its videos and its objects, so that they differ from those of the original split."""


class Mirrored(Dataset):
    """A split with frames and masks flipped from left to right, and sentences from `mirrored_text`."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.root, self.split = dataset.root, dataset.split + SUFFIX
        self.name, self.protocol, self.one_object = dataset.name, dataset.protocol, dataset.one_object

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return no split: mirrored splits are opened by their name only."""
        return []

    @property
    def has_ground_truth(self) -> bool:
        """Whether the original split has ground truth."""
        return self.dataset.has_ground_truth

    def video_ids(self) -> tuple[str, ...]:
        """Return the ids of the original videos with `-mirror` appended."""
        return tuple(video_id + SUFFIX for video_id in self.dataset.video_ids())

    def video(self, video_id: str) -> Video:
        """Return the flipped video. Raises InputError like the original split."""
        original = self.dataset.video(_original_id(video_id))

        def source(t: int) -> NDArray[np.uint8]:
            return np.ascontiguousarray(original.source(t)[:, ::-1])

        return replace(original, video_id=video_id, source=source)

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the original expressions in their order, mirrored."""
        return mirrored_expressions(self.dataset.expressions(_original_id(video_id)))

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """Return the ids of the original expressions."""
        return self.dataset.expression_ids(_original_id(video_id))

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """Return the original masks, flipped."""
        truth = self.dataset.ground_truth(_original_id(video_id))
        return None if truth is None else mirrored_truth(truth)

    def kind(self, video_id: str, expression_id: str) -> str | None:
        """Return the kind of the original expression."""
        return self.dataset.kind(_original_id(video_id), expression_id)

    def samples(self, video_id: str) -> tuple[Sample, ...] | None:
        """Return the original samples under image ids of their own."""
        samples = self.dataset.samples(_original_id(video_id))
        if samples is None:
            return None
        return tuple(replace(sample, video_id=video_id, image_id=sample.image_id + SUFFIX) for sample in samples)

    def check(self) -> Iterator[str]:
        """Yield the faults of the original split."""
        return self.dataset.check()


def mirrored_expressions(expressions: Iterable[Expression]) -> tuple[Expression, ...]:
    """Return the expressions of the mirrored video: new video and object ids, "left" and "right" exchanged."""
    return tuple(
        Expression(
            e.video_id + SUFFIX,
            e.expression_id,
            mirrored_text(e.text),
            None if e.targets is None else tuple(target + SUFFIX for target in e.targets),
        )
        for e in expressions
    )


def mirrored_truth(truth: GroundTruth) -> GroundTruth:
    """Return the objects of the mirrored video: new ids, masks flipped."""
    return GroundTruth(tuple(o + SUFFIX for o in truth.object_ids), flipped(truth.masks), truth.annotated)


def flipped(masks: RleMasks) -> RleMasks:
    """Return masks (K, T), each flipped from left to right."""
    return RleMasks.from_runs(masks.runs().flipped())


def _original_id(video_id: str) -> str:
    """Return the id of the original video. An id without the suffix becomes one that the original split does not list."""
    return video_id.removesuffix(SUFFIX) if video_id.endswith(SUFFIX) else video_id + " without " + SUFFIX
