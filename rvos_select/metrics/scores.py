"""Scores of expressions and their means: frame mean, then expression mean, in fractions of 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_select.metrics.region import check_pair
from rvos_select.metrics.silhouette import Silhouette, j_and_f
from rvos_select.metrics.slices import Facts, sliced


def score(prediction: RleMasks, truth: RleMasks, annotated: NDArray[np.bool_]) -> tuple[float, float]:
    """J and F of one expression: the means over its annotated frames. prediction, truth: (1, T); annotated: bool (T,).

    Raises InputError when no frame is annotated, ValueError when frames or sizes differ.
    """
    if not annotated.any():
        raise InputError("an expression's video has no annotated frame, so it cannot be scored; leave the video out")
    check_pair(prediction, truth)
    pairs = [
        j_and_f(*(Silhouette.of_runs(masks.bytes_at(0, t), masks.size) for masks in (prediction, truth)))
        for t in np.flatnonzero(annotated).tolist()
    ]
    region, contour = np.array(pairs).mean(axis=0).tolist()
    return region, contour


@dataclass
class Scores:
    """J and F by "<video>/<expression>", filled in one by one; `table` gives the means."""

    expressions: dict[str, tuple[float, float]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    facts: dict[str, Facts | None] = field(default_factory=dict)
    empty: dict[str, bool | None] = field(default_factory=dict)

    def add(
        self,
        key: str,
        value: tuple[float, float] | None,
        kind: str | None,
        facts: Facts | None = None,
        empty: bool | None = None,
    ) -> None:
        """One expression; `value` None: its prediction is missing, which scores 0 and is listed.

        facts: for the slices, None where nothing is known; empty: whether the prediction has no pixel, None where it is missing.
        """
        self.expressions[key] = (0.0, 0.0) if value is None else value
        self.facts[key], self.empty[key] = facts, empty
        if value is None:
            self.missing.append(key)
        if kind is not None:
            self.kinds[key] = kind

    def table(self) -> dict[str, Any]:
        """{"jf", "j", "f", "expressions": {key: {"j", "f"}}}; "missing", "kinds", "n_acc", "t_acc", "slices" where there are any.

        kinds: {kind: {"jf", "j", "f", "count"}}; slices: {attribute: {part: the same}}, see `slices`. n_acc, t_acc: MeViSv2's,
        there where expressions have no target: the share of these that is answered without a pixel, and the share of the
        others, where there are any, that is answered with one. A missing prediction is no right answer to either.
        """
        if not self.expressions:
            raise InputError("there is no expression to score; check --split, --video and --limit")
        out: dict[str, Any] = self._means(list(self.expressions))
        out |= self._empty_answers()
        out["expressions"] = {key: {"j": a, "f": b} for key, (a, b) in self.expressions.items()}
        if self.missing:
            out["missing"] = self.missing
        if self.kinds:
            out["kinds"] = {}
            for kind in sorted(set(self.kinds.values())):
                keys = [key for key, found in self.kinds.items() if found == kind]
                out["kinds"][kind] = {**self._means(keys), "count": len(keys)}
        slices = sliced(self.facts, self._means)
        return {**out, "slices": slices} if slices else out

    def _means(self, keys: list[str]) -> dict[str, float]:
        rows = np.array([self.expressions[key] for key in keys], np.float64)
        region, contour = (float(x) for x in rows.mean(axis=0))
        return {"jf": (region + contour) / 2, "j": region, "f": contour}

    def _empty_answers(self) -> dict[str, float]:
        named = {key: None if found is None else found.targets for key, found in self.facts.items()}
        known = {key: count > 0 for key, count in named.items() if count is not None}
        without, given = ([key for key, aimed in known.items() if aimed is wanted] for wanted in (False, True))
        if not without:
            return {}
        out = {"n_acc": sum(self.empty[key] is True for key in without) / len(without)}
        return {**out, "t_acc": sum(self.empty[key] is False for key in given) / len(given)} if given else out
