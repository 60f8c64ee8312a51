"""Whether every expression of a dataset names exactly one object."""

from __future__ import annotations

from collections.abc import Iterable

from rvos_cache.datasets import DATASETS, dataset_class


def names_one_object(dataset: str) -> bool:
    """Whether every expression of the dataset names exactly one object; False of a dataset that is not known here."""
    return (dataset in DATASETS or ":" in dataset) and dataset_class(dataset).one_object


def all_name_one_object(datasets: Iterable[str]) -> bool:
    """Whether this holds for each of `datasets`."""
    return all(map(names_one_object, datasets))
