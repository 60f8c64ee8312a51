"""Any split seen in a mirror: a second training set from the first, with left and right swapped in its sentences too.

Split `<split>-mirror` of every dataset; its cache joins the split's own in one training run (`--cache` of each).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets.base import Dataset
from rvos_cache.datasets.captions import mirrored_text
from rvos_cache.masks import RleMasks
from rvos_cache.types import Expression, GroundTruth, Video

SUFFIX = "-mirror"
"""Of the split, of its videos and of its objects: both sets together name each once."""
SAMPLES = "samples"
OPTIONAL = ("expression_ids", "kind", SAMPLES)
"""What a Dataset may have."""


class Mirrored(Dataset):
    """A dataset's split with frames and masks flipped from left to right and sentences as `mirrored_text` gives them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.name, self.root, self.split = dataset.name, dataset.root, dataset.split + SUFFIX
        self.one_object = dataset.one_object

    @staticmethod
    def splits(root: Path) -> list[str]:
        """None: a mirror is asked for by its name."""
        return []

    @property
    def has_ground_truth(self) -> bool:
        """Whether the split itself shows its ground truth."""
        return self.dataset.has_ground_truth

    def video_ids(self) -> tuple[str, ...]:
        """The split's videos, `-mirror` behind each."""
        return tuple(video_id + SUFFIX for video_id in self.dataset.video_ids())

    def video(self, video_id: str) -> Video:
        """Raises InputError as the split does."""
        seen = self.dataset.video(_own(video_id))

        def source(t: int) -> NDArray[np.uint8]:
            return np.ascontiguousarray(seen.source(t)[:, ::-1])

        return Video(video_id, seen.frame_names, seen.size, source)

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """The split's, in its order, mirrored."""
        return mirrored_expressions(self.dataset.expressions(_own(video_id)))

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """The split's masks, flipped."""
        truth = self.dataset.ground_truth(_own(video_id))
        return None if truth is None else mirrored_truth(truth)

    def check(self) -> Iterator[str]:
        """The faults of the split itself."""
        return self.dataset.check()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """What only some datasets have, of the video behind the mirror. Raises AttributeError where the split has it not."""
        if name not in OPTIONAL:
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        own = getattr(self.dataset, name)
        if name == SAMPLES:
            return lambda video_id: tuple(
                replace(sample, video_id=video_id, image_id=sample.image_id + SUFFIX) for sample in own(_own(video_id))
            )
        return lambda video_id, *rest: own(_own(video_id), *rest)


def mirrored_expressions(expressions: Iterable[Expression]) -> tuple[Expression, ...]:
    """The same sentences of the videos behind the mirror, left and right swapped."""
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
    """The same objects, flipped."""
    return GroundTruth(tuple(o + SUFFIX for o in truth.object_ids), flipped(truth.masks), truth.annotated)


def flipped(masks: RleMasks) -> RleMasks:
    """Masks (K, T), each flipped from left to right."""
    return RleMasks.from_runs(masks.runs().flipped())


def _own(video_id: str) -> str:
    """The video behind the mirror; one without the suffix is not of this split, and the split says so of it."""
    return video_id.removesuffix(SUFFIX) if video_id.endswith(SUFFIX) else video_id + " without " + SUFFIX
