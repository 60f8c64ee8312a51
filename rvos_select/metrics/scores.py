"""Scores of expressions and their means: frame mean, then expression mean, in fractions of 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_select.metrics.boundary import f
from rvos_select.metrics.region import j


def score(prediction: RleMasks, truth: RleMasks, annotated: NDArray[np.bool_]) -> tuple[float, float]:
    """J and F of one expression: the means over its annotated frames. prediction, truth: (1, T); annotated: bool (T,).

    Raises InputError when no frame is annotated.
    """
    if not annotated.any():
        raise InputError("an expression's video has no annotated frame, so it cannot be scored; leave the video out")
    if not annotated.all():
        prediction, truth = (_only(masks, annotated) for masks in (prediction, truth))
    return float(j(prediction, truth).mean()), float(f(prediction, truth).mean())


def _only(masks: RleMasks, frames: NDArray[np.bool_]) -> RleMasks:
    row = [masks.bytes_at(0, int(t)) for t in np.flatnonzero(frames)]
    return RleMasks.from_bytes([row], len(row), masks.size)


@dataclass
class Scores:
    """J and F by "<video>/<expression>", filled in one by one; `table` gives the means."""

    expressions: dict[str, tuple[float, float]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, key: str, value: tuple[float, float] | None, kind: str | None) -> None:
        """One expression; `value` None: its prediction is missing, which scores 0 and is listed."""
        self.expressions[key] = (0.0, 0.0) if value is None else value
        if value is None:
            self.missing.append(key)
        if kind is not None:
            self.kinds[key] = kind

    def table(self) -> dict[str, Any]:
        """{"j", "f", "jf", "expressions": {key: {"j", "f"}}}, "missing" and "kinds" where there are any."""
        if not self.expressions:
            raise InputError("there is no expression to score; check --split, --video and --limit")
        out: dict[str, Any] = _means(list(self.expressions.values()))
        out["expressions"] = {key: {"j": a, "f": b} for key, (a, b) in self.expressions.items()}
        if self.missing:
            out["missing"] = self.missing
        if self.kinds:
            out["kinds"] = {}
            for kind in sorted(set(self.kinds.values())):
                rows = [self.expressions[key] for key, found in self.kinds.items() if found == kind]
                out["kinds"][kind] = {**_means(rows), "count": len(rows)}
        return out


def _means(rows: list[tuple[float, float]]) -> dict[str, float]:
    region, contour = (float(x) for x in np.mean(np.array(rows, np.float64), axis=0))
    return {"j": region, "f": contour, "jf": (region + contour) / 2}
