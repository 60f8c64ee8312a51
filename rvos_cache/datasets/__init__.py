"""Datasets: the only code that knows a dataset's folder layout. To add one, write a file and a line in DATASETS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from rvos_cache.datasets.mirrored import SUFFIX, Mirrored
from rvos_cache.plugins import resolve
from rvos_cache.types import Expression, GroundTruth, Video

DATASETS = {
    "a2d-sentences": "rvos_cache.datasets.a2d_sentences:A2dSentences",
    "jhmdb-sentences": "rvos_cache.datasets.jhmdb_sentences:JhmdbSentences",
    "mevis": "rvos_cache.datasets.mevis:Mevis",
    "plain": "rvos_cache.datasets.plain:Plain",
    "ref-davis17": "rvos_cache.datasets.ref_davis17:RefDavis17",
    "ref-youtube-vos": "rvos_cache.datasets.ref_youtube_vos:RefYoutubeVos",
    "refcoco": "rvos_cache.datasets.refcoco:RefCoco",
    "refcoco+": "rvos_cache.datasets.refcoco:RefCocoPlus",
    "refcocog": "rvos_cache.datasets.refcoco:RefCocoG",
}


class Dataset(Protocol):
    """One split of one dataset. Making it reads the expressions, never frames or masks.

    one_object: every expression names exactly one object, so that an answer may be the best track alone.
    A dataset may have more, which is read where it is there: `expression_ids(video_id)`, also the ids of expressions that cannot
    be read, so that holes are counted; `kind(video_id, expression_id) -> str | None`, what a sentence speaks of; and
    `samples(video_id) -> tuple[Sample, ...]`, the frames that its benchmark scores.
    """

    name: str
    one_object: bool
    root: Path
    split: str

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError when the split is not there or its files cannot be read."""

    @staticmethod
    def splits(root: Path) -> list[str]:
        """The splits found under `root`, in the dataset's own order."""

    @property
    def has_ground_truth(self) -> bool:
        """Whether the split shows its ground truth."""

    def video_ids(self) -> tuple[str, ...]:
        """The videos of the split in file order. Raises InputError where its list has lost one."""

    def video(self, video_id: str) -> Video:
        """Raises InputError when the video is not listed or its frames are missing."""

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """All expressions of the video in file order."""

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """None exactly when the split hides its answers. Raises InputError for a damaged annotation."""

    def check(self) -> Iterator[str]:
        """Every fault of the split, one line each, naming its file; reads everything."""


def open_dataset(name: str, root: Path, split: str) -> Dataset:
    """The dataset `name` (a name in DATASETS or "package.module:Class"); `<split>-mirror` is the split seen in a mirror."""
    kind = resolve(DATASETS, name, "dataset")
    own = split.removesuffix(SUFFIX)
    dataset: Dataset = kind(Path(root), own)
    seen: Dataset = dataset if own == split else Mirrored(dataset)
    return seen
