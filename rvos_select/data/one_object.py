"""Whether every expression of a dataset names exactly one object."""

from __future__ import annotations

from collections.abc import Iterable

from rvos_cache.datasets import DATASETS
from rvos_cache.plugins import resolve


def names_one_object(dataset: str) -> bool:
    """Whether every expression of the dataset names exactly one object; False of a dataset that is not known here."""
    known = dataset in DATASETS or ":" in dataset
    return known and bool(getattr(resolve(DATASETS, dataset, "dataset"), "one_object", False))


def all_name_one_object(datasets: Iterable[str]) -> bool:
    """Whether this holds for each of `datasets`."""
    return all(map(names_one_object, datasets))
