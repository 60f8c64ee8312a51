"""The order of an epoch: which expressions or videos it takes, how often, and in which steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import torch

from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_select.data.collate import Row
from rvos_select.data.samples import VideoSample, set_name

T = TypeVar("T")
Grouping = Literal["single", "video"]
"""single: an epoch's items are expressions, some per step; video: they are videos, a step has all expressions of one."""


class Step(NamedTuple):
    """The expressions of a step of the optimiser. name: for messages, of the video or of the first expression."""

    rows: list[Row]
    name: str


def steps(
    samples: Sequence[VideoSample],
    grouping: Grouping,
    size: int,
    generator: torch.Generator | None,
    weights: Mapping[str, float] = {},
) -> Iterator[Step]:
    """The steps of an epoch, in an order sampled with `generator` (None: file order).

    size: expressions per step of grouping "single". weights: set -> how often its items come, 1 by default; see `epoch_order`.
    """
    if grouping == "video":
        videos = [s for s in samples if s.expressions]
        for i in epoch_order([s.set_name for s in videos], weights, generator):
            yield Step([(videos[i], row) for row in range(len(videos[i].expressions))], videos[i].video_id)
        return
    rows = [(sample, row) for sample in samples for row in range(len(sample.expressions))]
    order = epoch_order([sample.set_name for sample, _ in rows], weights, generator)
    for start in range(0, len(order), size):
        chosen = [rows[i] for i in order[start : start + size]]
        sample, row = chosen[0]
        yield Step(chosen, sample.expressions[row].key)


def epoch_order(sets: Sequence[str], weights: Mapping[str, float], generator: torch.Generator | None) -> list[int]:
    """The items of an epoch in an order sampled with `generator` (None: file order, the first items of each set).

    sets: the set of each item. A set of n items and weight w gives `items_per_epoch(n, w)` of them: each item as often as fits
    into that number, and others sampled without replacement for the rest.
    """
    members: dict[str, list[int]] = {}
    for i, name in enumerate(sets):
        members.setdefault(name, []).append(i)
    chosen: list[int] = []
    for name, items in sorted(members.items()):
        whole, rest = divmod(items_per_epoch(len(items), weights.get(name, 1.0)), len(items))
        chosen += items * whole
        if rest:
            chosen += [items[i] for i in _permutation(len(items), generator)[:rest]]
    # In file order before they are shuffled, so that weights of 1 are the same run as none.
    chosen.sort()
    return [chosen[i] for i in _permutation(len(chosen), generator)]


def items_per_epoch(count: int, weight: float) -> int:
    """Items that a set of `count` gives to an epoch: count · weight, rounded half up, and at least one of any."""
    return max(1, int(count * weight + 0.5)) if count else 0


def set_sizes(samples: Sequence[VideoSample], grouping: Grouping) -> dict[str, int]:
    """Set -> its items: videos with expressions, or expressions."""
    sizes: dict[str, int] = {}
    for s in samples:
        count = len(s.expressions) if grouping == "single" else int(bool(s.expressions))
        sizes[s.set_name] = sizes.get(s.set_name, 0) + count
    return sizes


def count_steps(samples: Sequence[VideoSample], grouping: Grouping, size: int, weights: Mapping[str, float] = {}) -> int:
    """How many steps an epoch has, see `steps`."""
    items = sum(items_per_epoch(count, weights.get(name, 1.0)) for name, count in set_sizes(samples, grouping).items())
    return items if grouping == "video" else -(-items // size)


def set_weights(cards: Sequence[Card], weights: Mapping[str, float]) -> dict[str, float]:
    """Set -> its weight: that of "dataset/split", else that of "dataset", else 1. Raises InputError for a name of no set."""
    sets = {set_name(card): card.dataset for card in cards}
    names = sorted({*sets, *sets.values()})
    for name in weights:
        if name not in names:
            raise InputError(f"weights: no training cache is of {name!r}; there are: {', '.join(names)}")
    return {name: weights.get(name, weights.get(dataset, 1.0)) for name, dataset in sorted(sets.items())}


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The items, each made in a thread while the one before it is used, so that a GPU does not wait for the disk."""
    with ThreadPoolExecutor(1) as worker:
        pending = worker.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = worker.submit(next, items, None)
            yield item


def _permutation(count: int, generator: torch.Generator | None) -> list[int]:
    return list(range(count)) if generator is None else torch.randperm(count, generator=generator).tolist()
