"""Datasets: the only code that knows a dataset's folder layout. To add one, write a file and a line in DATASETS."""

from __future__ import annotations

from pathlib import Path

from rvos_cache.datasets.base import Dataset, Protocol, check_dataset_class
from rvos_cache.datasets.mirrored import SUFFIX, Mirrored
from rvos_cache.datasets.samples import Sample
from rvos_cache.datasets.single_frames import SUFFIX as FRAMES
from rvos_cache.datasets.single_frames import SingleFrames
from rvos_cache.errors import InputError
from rvos_cache.plugins import reporting, resolve

__all__ = ["DATASETS", "Dataset", "Protocol", "Sample", "dataset_class", "dataset_faults", "open_dataset"]

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
    """Return the class of the dataset `name`, a name in DATASETS or "my_module:MyDataset" of the user's own.

    Its class attributes (`protocol`, `one_object`, ...) can be read without opening a split. Raises InputError: if there is no
    such class, or it breaks the contract of `Dataset`.
    """
    cls: type[Dataset] = resolve(DATASETS, name, "dataset", Dataset)
    check_dataset_class(cls, f"dataset {name}")
    return cls


def open_dataset(name: str, root: Path | str, split: str) -> Dataset:
    """Open a split of the dataset `name` (see `dataset_class`); `<split>-mirror` is the split mirrored from left to right,
    `<split>-frames` its scored frames, each as a video.

    Raises InputError: if there is no such dataset or split, its files cannot be read, or it lists no video.
    """
    cls, unmirrored = dataset_class(name), split.removesuffix(SUFFIX)
    original = unmirrored.removesuffix(FRAMES)
    if original != unmirrored and unmirrored in cls.splits(Path(root)):
        original = unmirrored
    with reporting(f"dataset {name}", f"split {original} cannot be opened", is_custom=name not in DATASETS):
        dataset = cls(Path(root), original)
        if _is_empty(dataset):
            raise InputError(f"{root}, split {original} of {name}: lists no video; look at the files of the split, and at --root")
    dataset = dataset if original == unmirrored else SingleFrames(dataset)
    return dataset if unmirrored == split else Mirrored(dataset)


def _is_empty(dataset: Dataset) -> bool:
    try:
        return not dataset.video_ids()
    except InputError:
        # The list is incomplete: whoever reads it gets this error, and `check` lists every fault.
        return False


def dataset_faults(name: str, root: Path | str, split: str) -> list[str]:
    """Return every fault of a split, one line each; reads all of its files. Raises like `open_dataset`."""
    return list(open_dataset(name, root, split).check())
