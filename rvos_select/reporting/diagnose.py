"""Why an expression scored what it did: it should be empty, was not tracked, was selected wrongly, or its tracks are poor.

Of a selector that draws its own masks, from caches without tracks, nothing tells why an object was not found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rvos_select.metrics.region_contour import REGION_CONTOUR

Cause = Literal["good", "should be empty", "missed by the tracker", "wrong selection", "poor tracks", "not good"]
GOOD, GAP = 0.75, 0.15


@dataclass(frozen=True)
class Case:
    """One expression with its J&F, that of perfect labels (None without tracks), and the cause of the difference.

    best_iou: the largest mean IoU of a candidate track with an object of the expression; None where it names none.
    """

    video_id: str
    expression_id: str
    jf: float
    oracle: float | None
    cause: Cause
    best_iou: float | None = None

    @property
    def key(self) -> str:
        """`<video>/<expression>`."""
        return f"{self.video_id}/{self.expression_id}"


def cause_of(
    jf: float, oracle: float | None, best_iou: float | None, label_iou: float | None, names_none: bool | None = None
) -> Cause:
    """The first that holds, see `meanings`.

    label_iou: of the labels; None where the masks are not those of tracks; names_none: whether the expression names no object, by
    default where it has an `oracle` without `best_iou`.
    """
    if jf >= GOOD:
        return "good"
    if names_none or (names_none is None and oracle is not None and best_iou is None):
        return "should be empty"
    if oracle is None:
        return "not good"
    if best_iou is not None and label_iou is not None and best_iou <= label_iou:
        return "missed by the tracker"
    return "wrong selection" if oracle - jf > GAP else "poor tracks"


def meanings(label_iou: float | None, has_tracks: bool = True) -> dict[Cause, str]:
    """What each cause means, in percent, in the order in which they are tried."""
    gap = f"{100 * GAP:.0f}"
    causes: dict[Cause, str] = {
        "good": f"J&F of {100 * GOOD:.0f} or more",
        "should be empty": "the sentence names no object, so nothing is right, and something was selected",
    }
    if not has_tracks:
        causes["not good"] = "less; the masks are the selector's own, so there are no tracks that tell why"
        return causes
    if label_iou is not None:
        causes["missed by the tracker"] = (
            f"no candidate track has a mean IoU above {100 * label_iou:g} (label_iou={label_iou:g}) with any object that the sentence "
            "names: no selection of tracks is right, and where a selector learns from labels of tracks, none existed; see the "
            "settings of the tracker"
        )
    causes["wrong selection"] = f"perfect labels score over {gap} more: better tracks were there and were not selected"
    causes["poor tracks"] = (
        f"perfect labels score at most {gap} more: the selection is about as good as the tracks, which are inexact or lack some "
        "of several objects"
    )
    return causes


def diagnose(
    scores: Mapping[str, Any], oracle: Mapping[str, Any] | None, label_iou: float | None, empty: Collection[str] = ()
) -> list[Case]:
    """Every expression of `scores["expressions"]` that has a prediction, worst first.

    oracle: None where the caches have no tracks; label_iou: as in `cause_of`; empty: keys of expressions that name no object, which the
    oracle knows by itself.
    """
    cases, missing = [], set(scores.get("missing", []))
    for key, numbers in scores["expressions"].items():
        if key in missing:
            continue
        video_id, _, expression_id = key.partition("/")
        jf = REGION_CONTOUR.measures(numbers)["jf"]
        best = None if oracle is None else REGION_CONTOUR.measures(oracle["expressions"][key])["jf"]
        best_iou = None if oracle is None else oracle["best_iou"].get(key)
        cause = cause_of(jf, best, best_iou, label_iou, names_none=True if key in empty else None)
        cases.append(Case(video_id, expression_id, jf, best, cause, best_iou))
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
