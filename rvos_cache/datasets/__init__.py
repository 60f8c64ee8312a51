"""Datasets: the only code that knows a dataset's folder layout. To add one, write a file and a line in DATASETS."""

from __future__ import annotations

from pathlib import Path

from rvos_cache.datasets.base import Dataset, Protocol
from rvos_cache.datasets.mirrored import SUFFIX, Mirrored
from rvos_cache.datasets.samples import Sample
from rvos_cache.errors import InputError
from rvos_cache.plugins import resolve

__all__ = ["DATASETS", "Dataset", "Protocol", "Sample", "dataset_class", "open_dataset"]

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
"""Name of a dataset -> its class."""


def dataset_class(name: str) -> type[Dataset]:
    """Return the class of the dataset `name`, a name in DATASETS or "package.module:Class".

    Its class attributes (`protocol`, `one_object`, ...) can be read without opening a split. Raises InputError: if there is no
    such class, it is not a subclass of Dataset, or it lacks a required method.
    """
    cls = resolve(DATASETS, name, "dataset")
    if not (isinstance(cls, type) and issubclass(cls, Dataset)):
        raise InputError(f"dataset {name!r}: expected a subclass of rvos_cache.datasets.Dataset, got {cls!r:.60}")
    lacking = sorted(cls.__abstractmethods__)
    if lacking:
        raise InputError(f"dataset {name!r}: the class does not define {', '.join(lacking)}; see rvos_cache.datasets.Dataset")
    return cls


def open_dataset(name: str, root: Path, split: str) -> Dataset:
    """Open a split of the dataset `name` (see `dataset_class`); `<split>-mirror` is the split mirrored from left to right.

    Raises InputError: if there is no such dataset or split, or its files cannot be read.
    """
    original = split.removesuffix(SUFFIX)
    dataset = dataset_class(name)(Path(root), original)
    return dataset if original == split else Mirrored(dataset)
