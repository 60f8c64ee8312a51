"""Which tracks answer an expression: what the caller asks, what the selections' card has, and the rule that comes of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets import DATASETS
from rvos_cache.errors import InputError
from rvos_cache.plugins import resolve
from rvos_cache.store import SelectionCache
from rvos_cache.types import Selection

Empty = Literal["zeros", "top1"]
"""What answers where no candidate is above the threshold: an empty mask, or the best candidate alone."""
DEFAULT_THRESHOLD = 0.5
"""Where neither the caller nor the selections' card has one (SOLA's, section 4.1)."""
DEFAULT_EMPTY: Empty = "zeros"
"""Where neither the caller nor the selections' card says it."""

# Entries of a selections card.
THRESHOLD = "threshold"
"""The selector's own threshold."""
TOP1 = "top1"
"""Each expression is answered with its best track."""
EMPTY = "empty"
"""The selector's own `Empty`."""
DRAW_THRESHOLD = "draw_threshold"
"""The score above which a selector drew the masks of its queries, where it draws any."""


@dataclass(frozen=True)
class PolicyOptions:
    """What the caller asks; what it leaves out is as the selections' card has it.

    threshold: in [0, 1], scores above it (strict) are chosen; top1: the best candidate alone; empty: what answers where no score
    is above the threshold. Raises InputError for other values, and for top1 together with a threshold or with empty.
    """

    threshold: float | None = None
    top1: bool = False
    empty: Empty | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold}: scores lie in [0, 1]; give a threshold in it")
        if self.empty is not None:
            check_empty(self.empty, "--empty")
        for name, other in (("--threshold", self.threshold), ("--empty", self.empty)):
            if self.top1 and other is not None:
                raise InputError(
                    f"{name} and --top1 exclude each other: the best track answers whatever its score; give one of them"
                )


DEFAULT_POLICY = PolicyOptions()
"""Nothing is asked: as the selections' card has it."""


@dataclass(frozen=True)
class SelectionPolicy:
    """The rule that a policy and a card come to: the candidates whose scores are above `threshold` (strict).

    top1: the best candidate alone instead; empty: what answers where none is above. Ties of the best go to the lowest index.
    """

    threshold: float
    top1: bool = False
    empty: Empty = DEFAULT_EMPTY

    def __call__(self, selection: Selection) -> NDArray[np.intp]:
        """Indices of the chosen tracks, rising. No candidate: none."""
        return np.flatnonzero(self.among(selection.scores[None], selection.candidates[None])[0])

    def among(self, scores: NDArray[np.float32], candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which tracks of each expression are chosen, bool (E, N); scores and candidates (E, N)."""
        allowed = np.where(candidates, scores, -1.0)
        best = np.zeros_like(candidates)
        if best.shape[1]:
            np.put_along_axis(best, allowed.argmax(1)[:, None], True, 1)
        best &= candidates
        above = allowed > self.threshold
        if self.top1:
            return best
        return np.where(above.any(1, keepdims=True), above, best) if self.empty == "top1" else above

    def record(self) -> dict[str, Any]:
        """What tells masks by this rule from those by another, as JSON holds it; `completed` reads those of older code."""
        return {THRESHOLD: None if self.top1 else self.threshold, TOP1: self.top1, EMPTY: self.empty}


def completed(record: dict[str, Any]) -> dict[str, Any]:
    """A `SelectionPolicy.record` with what code that knew no `empty` left out."""
    return {EMPTY: "zeros", **record}


def resolve_policy(
    selections: SelectionCache, policy: PolicyOptions = DEFAULT_POLICY, top1_unasked: bool = False
) -> SelectionPolicy:
    """The rule for these selections: as `policy` asks, else as their card says.

    top1_unasked: without a threshold the best track answers, whatever the card says. Raises InputError for a threshold so low
    that it would choose queries whose masks were not drawn, for `policy.empty` where the best track answers, and for a card
    that is not understood.
    """
    extra = selections.card.extra
    threshold = float(extra.get(THRESHOLD, DEFAULT_THRESHOLD)) if policy.threshold is None else policy.threshold
    if policy.top1 or (policy.threshold is None and (top1_unasked or extra.get(TOP1, False))):
        if policy.empty is not None:
            raise InputError(f"{selections.path}: each expression has its best track; give --empty together with --threshold")
        return SelectionPolicy(threshold, top1=True)
    draw_threshold = extra.get(DRAW_THRESHOLD, 0.0)
    if threshold < draw_threshold:
        only = f"only masks of scores above {draw_threshold} were drawn"
        raise InputError(f"{selections.path}: threshold {threshold}, but {only}; give a threshold above it")
    empty = check_empty(extra.get(EMPTY, DEFAULT_EMPTY), str(selections.path))
    return SelectionPolicy(threshold, empty=policy.empty or empty)


def selector_policy(selector: Any, datasets: Iterable[str]) -> SelectionPolicy:
    """A selector's rule for expressions of `datasets`, where nothing is asked. Raises InputError for an unknown `empty`."""
    empty = check_empty(selector.empty, f"selector {type(selector).__name__}")
    return SelectionPolicy(selector.threshold, selector.top1_of_one and all(map(names_one_object, datasets)), empty)


def names_one_object(dataset: str) -> bool:
    """Whether every expression of the dataset names exactly one object; False of one that is not known here."""
    known = dataset in DATASETS or ":" in dataset
    return known and bool(getattr(resolve(DATASETS, dataset, "dataset"), "one_object", False))


def check_empty(value: object, where: str) -> Empty:
    """`value`, one of `Empty`. Raises InputError that names `where`."""
    for known in get_args(Empty):
        if value == known:
            return known
    raise InputError(f"{where}: {value!r} is no answer to an empty choice; there are: {', '.join(get_args(Empty))}")
