"""Why an expression scored what it did: no good candidate, wrong selection, or poor mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rvos_select.metrics.region_contour import REGION_CONTOUR

Cause = Literal["good", "no good candidate", "wrong selection", "poor mask"]
GOOD, GAP = 0.75, 0.15


@dataclass(frozen=True)
class Case:
    """One expression with its J&F, the J&F of perfect labels, and the cause of the difference."""

    video_id: str
    expression_id: str
    jf: float
    oracle: float
    cause: Cause

    @property
    def key(self) -> str:
        """`<video>/<expression>`."""
        return f"{self.video_id}/{self.expression_id}"


def cause_of(jf: float, oracle: float) -> Cause:
    """The cause by two questions: was there a good candidate, and was it selected?

    J&F at least GOOD: good. Perfect labels more than GAP above: the selection was wrong. Otherwise the selection is about as
    good as the candidates allow: poor masks where perfect labels reach 0.5, no good candidate where they do not.
    """
    if jf >= GOOD:
        return "good"
    if oracle - jf > GAP:
        return "wrong selection"
    return "poor mask" if oracle >= 0.5 else "no good candidate"


def diagnose(scores: Mapping[str, Any], oracle: Mapping[str, Any]) -> list[Case]:
    """Every expression of `scores["expressions"]` that has a prediction, worst first."""
    cases, missing = [], set(scores.get("missing", []))
    for key, numbers in scores["expressions"].items():
        if key in missing:
            continue
        video_id, _, expression_id = key.partition("/")
        jf, best = (REGION_CONTOUR.measures(of_expression)["jf"] for of_expression in (numbers, oracle["expressions"][key]))
        cases.append(Case(video_id, expression_id, jf, best, cause_of(jf, best)))
    return sorted(cases, key=lambda case: (case.jf, case.key))


def choose(cases: list[Case], each: int) -> dict[str, list[Case]]:
    """Up to `each` worst, median and best cases of `cases` (worst first), none twice."""
    # A J&F of exactly 1 is an empty mask without target, or a mask copied from the truth: among the best, others come first.
    best = sorted(cases, key=lambda case: (case.jf == 1, -case.jf))
    middle = max(0, len(cases) // 2 - each // 2)
    groups: dict[str, list[Case]] = {}
    used: set[str] = set()
    for name, part in (("worst", cases[:each]), ("median", cases[middle : middle + each]), ("best", best[:each])):
        groups[name] = [case for case in part if case.key not in used]
        used |= {case.key for case in groups[name]}
    return groups
