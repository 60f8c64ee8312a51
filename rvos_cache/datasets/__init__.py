"""Datasets: the only code that knows a dataset's folder layout. To add one, write a file and a line in DATASETS."""

from __future__ import annotations

from pathlib import Path

from rvos_cache.datasets.base import Dataset, check_dataset_class
from rvos_cache.datasets.mirrored import SUFFIX, Mirrored
from rvos_cache.plugins import reporting, resolve

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

__all__ = ["DATASETS", "Dataset", "dataset_class", "dataset_faults", "open_dataset"]


def dataset_class(name: str) -> type[Dataset]:
    """The dataset `name` (a name in DATASETS, or "my_module:MyDataset" of the user's own).

    Raises InputError if there is none of that name or the class breaks the contract of `Dataset`.
    """
    cls: type[Dataset] = resolve(DATASETS, name, "dataset", Dataset)
    check_dataset_class(cls, f"dataset {name}")
    return cls


def open_dataset(name: str, root: Path | str, split: str) -> Dataset:
    """The split `split` of the dataset `name`; `<split>-mirror` is the split flipped from left to right.

    name: a name in DATASETS or "my_module:MyDataset". Raises InputError like `dataset_class`, and if the split cannot be opened.
    """
    cls = dataset_class(name)
    own_split = split.removesuffix(SUFFIX)
    with reporting(f"dataset {name}", f"split {own_split} cannot be opened", is_custom=name not in DATASETS):
        dataset = cls(Path(root), own_split)
    return dataset if own_split == split else Mirrored(dataset)


def dataset_faults(name: str, root: Path | str, split: str) -> list[str]:
    """Every fault of a split, one line each; reads all of its files. Raises like `open_dataset`."""
    return list(open_dataset(name, root, split).check())
