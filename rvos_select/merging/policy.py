"""The selection policy: which candidates of an expression are selected, given their scores.

`PolicyOptions` is what the caller asked for; with the defaults of the selections' card it resolves to a `SelectionPolicy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.store import SelectionCache
from rvos_cache.types import Selection

Empty = Literal["zeros", "top1"]
"""What an expression without a score above the threshold gets: an empty mask, or its best candidate."""
DEFAULT_THRESHOLD = 0.5
"""Where neither the caller nor the selections' card has one (SOLA's, section 4.1)."""
DEFAULT_EMPTY: Empty = "zeros"
"""Where neither the caller nor the selections' card has one."""

# Entries of a selections card.
THRESHOLD = "threshold"
"""The selector's own threshold."""
TOP1 = "top1"
"""Whether the best candidate alone is selected."""
EMPTY = "empty"
"""The selector's own `Empty`."""
DRAW_THRESHOLD = "draw_threshold"
"""The score above which a selector predicts the masks of its queries, where it predicts masks."""


@dataclass(frozen=True)
class PolicyOptions:
    """What the caller asked for; what is left out comes from the selections' card.

    threshold: in [0, 1], candidates with scores above it (strict) are selected; top1: the best candidate alone; empty: what an
    expression without a score above the threshold gets. Raises InputError for other values, and for top1 together with a
    threshold or with empty.
    """

    threshold: float | None = None
    top1: bool = False
    empty: Empty | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold}: scores are in [0, 1]; give a threshold in that range")
        if self.empty is not None:
            check_empty(self.empty, "--empty")
        for name, value in (("--threshold", self.threshold), ("--empty", self.empty)):
            if self.top1 and value is not None:
                raise InputError(
                    f"{name} and --top1 exclude each other: --top1 selects the best track whatever its score; give one of them"
                )


DEFAULT_POLICY = PolicyOptions()
"""No option: everything comes from the selections' card."""


@dataclass(frozen=True)
class SelectionPolicy:
    """Selects the candidates whose scores are above `threshold` (strict).

    top1: selects the best candidate alone instead; empty: what an expression without a score above the threshold gets. Of equal
    best scores the lowest index is selected.
    """

    threshold: float
    top1: bool = False
    empty: Empty = DEFAULT_EMPTY

    def __call__(self, selection: Selection) -> NDArray[np.intp]:
        """Indices of the selected tracks, ascending; empty without a candidate."""
        return np.flatnonzero(self.among(selection.scores[None], selection.candidates[None])[0])

    def among(self, scores: NDArray[np.float32], candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each track of each expression is selected, bool (E, N). scores, candidates: (E, N)."""
        allowed = np.where(candidates, scores, -1.0)
        best = np.zeros_like(candidates)
        if best.shape[1]:
            np.put_along_axis(best, allowed.argmax(1)[:, None], True, 1)
        best &= candidates
        above = allowed > self.threshold
        if self.top1:
            return best
        return np.where(above.any(1, keepdims=True), above, best) if self.empty == "top1" else above

    def __str__(self) -> str:
        """As in "threshold 0.2"."""
        if self.top1:
            return "the best candidate"
        return f"threshold {self.threshold:g}" + ", else the best candidate" * (self.empty == "top1")

    def record(self) -> dict[str, Any]:
        """The policy as JSON. Policies that differ in nothing but an unused threshold have the same record."""
        return {THRESHOLD: None if self.top1 else self.threshold, TOP1: self.top1, EMPTY: self.empty}


Decision = SelectionPolicy
"""The name of `SelectionPolicy` in scripts that compare with the released code."""


def resolve_policy(
    selections: SelectionCache, options: PolicyOptions = DEFAULT_POLICY, top1_by_default: bool = False
) -> SelectionPolicy:
    """The policy for these selections: what `options` has, else what their card has.

    top1_by_default: without a threshold the best candidate is selected, whatever the card has. Raises InputError for a threshold
    below which masks were not predicted, for `options.empty` where the best candidate is selected anyway, and for a card with an
    unknown `Empty`.
    """
    extra = selections.card.extra
    threshold = float(extra.get(THRESHOLD, DEFAULT_THRESHOLD)) if options.threshold is None else options.threshold
    if options.top1 or (options.threshold is None and (top1_by_default or extra.get(TOP1, False))):
        if options.empty is not None:
            raise InputError(f"{selections.path}: each expression gets its best track; give --empty together with --threshold")
        return SelectionPolicy(threshold, top1=True)
    draw_threshold = extra.get(DRAW_THRESHOLD, 0.0)
    if threshold < draw_threshold:
        raise InputError(
            f"{selections.path}: threshold {threshold}, but only masks of scores above {draw_threshold} were predicted; give a "
            "threshold above it"
        )
    empty = check_empty(extra.get(EMPTY, DEFAULT_EMPTY), str(selections.path))
    return SelectionPolicy(threshold, empty=options.empty or empty)


def selector_policy(selector: Any, one_object: bool) -> SelectionPolicy:
    """The selector's own policy. one_object: every expression of the data names exactly one object.

    Raises InputError for an unknown `Empty`.
    """
    empty = check_empty(selector.empty, f"selector {type(selector).__name__}")
    return SelectionPolicy(selector.threshold, selector.top1_of_one and one_object, empty)


def check_empty(value: object, location: str) -> Empty:
    """`value`, one of `Empty`. Raises InputError, which begins with `location`."""
    for known in get_args(Empty):
        if value == known:
            return known
    raise InputError(f"{location}: empty must be one of {', '.join(get_args(Empty))}, not {value!r}")
