"""Why an expression scored what it did: no good candidate, wrong selection, or poor mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Cause = Literal["good", "no good candidate", "wrong selection", "poor mask"]
GOOD, GAP = 0.75, 0.15


@dataclass(frozen=True)
class Case:
    """One expression with its J&F, the J&F of perfect labels, and why it fell short."""

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
    """The cause by two questions: was a good answer there, and was it chosen?

    J&F at least GOOD: good. Perfect labels more than GAP above: the selection was wrong. Otherwise what was chosen is about
    the best there was: poor masks when the best is at least half right, no good candidate when not even that.
    """
    if jf >= GOOD:
        return "good"
    if oracle - jf > GAP:
        return "wrong selection"
    return "poor mask" if oracle >= 0.5 else "no good candidate"


def diagnose(scores: Mapping[str, Any], oracle: Mapping[str, Any]) -> list[Case]:
    """Every expression of `scores["expressions"]` that has a prediction, worst first."""
    cases, missing = [], set(scores.get("missing", []))
    for key, own in scores["expressions"].items():
        if key in missing:
            continue
        video_id, _, expression_id = key.partition("/")
        jf = (own["j"] + own["f"]) / 2
        best = oracle["expressions"][key]
        top = (best["j"] + best["f"]) / 2
        cases.append(Case(video_id, expression_id, jf, top, cause_of(jf, top)))
    return sorted(cases, key=lambda case: (case.jf, case.key))


def choose(cases: list[Case], each: int) -> dict[str, list[Case]]:
    """Up to `each` worst, median and best cases of `cases` (worst first), none twice."""
    # Exactly 1 is nothing to find and nothing drawn, or masks copied from the truth: among the best there is more to see.
    best = sorted(cases, key=lambda case: (case.jf == 1, -case.jf))
    middle = max(0, len(cases) // 2 - each // 2)
    chosen: dict[str, list[Case]] = {}
    seen: set[str] = set()
    for name, part in (("worst", cases[:each]), ("median", cases[middle : middle + each]), ("best", best[:each])):
        chosen[name] = [case for case in part if case.key not in seen]
        seen |= {case.key for case in chosen[name]}
    return chosen
