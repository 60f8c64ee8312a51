"""Scores of single frames, as A2D-Sentences and JHMDB-Sentences count them: mAP, overall IoU, mean IoU, P@0.5 to P@0.9.

A sample is one expression in one annotated frame, with one true mask and a selector's masks with their scores. mAP is
COCO's over IoU 0.50:0.05:0.95 (`COCOeval`, segm, useCats=0, 100 masks a sample; Lin et al., ECCV 2014), the rest is the
code of MTTR (`metrics.py`, which ReferFormer and ReferDINO copied) on the mask with the highest score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, intersections
from rvos_select.metrics.slices import Facts, sliced

MapMode = Literal["all-queries", "top1"]
"""Which masks mAP counts: all of a selector with their scores (the published numbers), or the best alone, which is lower."""

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
MAX_MASKS = 100
"""Masks of a sample that mAP counts, highest scores first (COCO's `maxDets`)."""
# COCO's own expressions: 0.95 and the recalls must be its very floats.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.00, 101)
SMOOTHING = 1e-6


@dataclass(frozen=True)
class Detections:
    """The masks of one sample as pixel counts. Raises ValueError when the parts do not fit together.

    scores: floating (Q,); inter: (Q,) pixels shared with the truth; area: (Q,); truth: pixels of the true mask. With a
    cache, `Overlap` holds all of them: inter[:, a, t], area[:, t], gt_area[a, t]. Q = 0 is an empty answer.
    """

    scores: NDArray[np.floating[Any]]
    inter: NDArray[np.integer[Any]]
    area: NDArray[np.integer[Any]]
    truth: int

    def __post_init__(self) -> None:
        shapes = {np.shape(self.scores), np.shape(self.inter), np.shape(self.area)}
        if len(shapes) != 1 or np.ndim(self.scores) != 1:
            raise ValueError(f"Detections: scores, inter, area must be one length (Q,), are {sorted(shapes)}")
        if not np.isfinite(self.scores).all():
            raise ValueError("Detections.scores hold NaN or infinite values")
        if (self.inter < 0).any() or (self.inter > np.minimum(self.area, self.truth)).any():
            raise ValueError("Detections: more shared pixels than the masks have")

    @classmethod
    def count(cls, masks: RleMasks, scores: NDArray[np.floating[Any]], truth: RleMasks, t: int = 0) -> Detections:
        """The masks (Q, T) against the truth (1, T) in frame t. Raises ValueError when frames or sizes differ."""
        if truth.shape != (1, masks.shape[1]) or truth.size != masks.size:
            raise ValueError(f"masks {masks.shape} {masks.size}, truth {truth.shape} {truth.size}: wanted (Q, T) and (1, T)")
        one = masks.frames(t, t + 1), truth.frames(t, t + 1)
        inter = intersections(one[0].column(0), one[1].column(0))[:, 0]
        return cls(scores, inter, one[0].area()[:, 0], int(one[1].area()[0, 0]))

    @property
    def union(self) -> NDArray[np.int64]:
        """Pixels of mask or truth, (Q,)."""
        return self.area.astype(np.int64) + self.truth - self.inter

    @property
    def best(self) -> int | None:
        """The mask with the highest score, the last of equal ones as in MTTR; None without masks."""
        return len(self.scores) - 1 - int(np.argmax(self.scores[::-1])) if len(self.scores) else None


@dataclass
class ImageScores:
    """Samples by key, filled in one by one; `table` gives the scores. Only numbers are kept: no masks.

    Keys are the benchmark's image ids: where scores are equal across samples, mAP depends on the order of its samples,
    and COCO's is that of the ids.
    """

    map_mode: MapMode = "all-queries"
    samples: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    """Key -> shared pixels, pixels of the union and IoU of the best mask."""
    ranked: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)
    """Key -> scores and IoU of the masks that mAP counts, highest score first."""
    missing: list[str] = field(default_factory=list)

    def add(self, key: str, found: Detections) -> None:
        """One sample. Without masks its answer is empty. Raises ValueError for a key that was added before."""
        self._new(key)
        best = found.best
        inter, union = (0, found.truth) if best is None else (int(found.inter[best]), int(found.union[best]))
        self.samples[key] = (inter, union, smooth_iou(inter, union))
        counted = np.argsort(-found.scores, kind="stable")[:MAX_MASKS]
        if self.map_mode == "top1":
            counted = counted[:0] if best is None else np.array([best])
        # COCO's rule for an empty union: 0, so an empty truth is never found.
        iou = found.inter[counted] / np.maximum(found.union[counted], 1)
        self.ranked[key] = (found.scores[counted].astype(np.float64), iou)

    def add_missing(self, key: str, truth: int) -> None:
        """A sample without an answer: it scores 0, whatever its `truth` (pixels), and is listed."""
        self._new(key)
        self.samples[key] = (0, truth, 0.0)
        self.ranked[key] = (np.zeros(0), np.zeros(0))
        self.missing.append(key)

    def _new(self, key: str) -> None:
        if key in self.samples:
            raise ValueError(f"sample {key} was added twice")

    def table(
        self, expressions: Mapping[str, Sequence[str]] | None = None, facts: Mapping[str, Facts | None] | None = None
    ) -> dict[str, Any]:
        """{"map", "map_mode", "overall_iou", "mean_iou", "precision": {"0.5": ...}, "samples": {key: IoU}} in fractions of 1.

        "missing" where there are any. expressions: "<video>/<expression>" -> its samples, for "expressions": {key: {"iou",
        "count"}}, their mean IoU and number; facts: sample -> what is known of it, for "slices": {attribute: {part: {"mean_iou",
        "count"}}}. Raises InputError when there is no sample.
        """
        if not self.samples:
            raise InputError("there is no sample to score; check --split, --video and --limit")
        inter, union = (sum(row[i] for row in self.samples.values()) for i in (0, 1))
        iou = np.array([row[2] for row in self.samples.values()], np.float64)
        out: dict[str, Any] = {
            "map": mean_average_precision([self.ranked[key] for key in sorted(self.ranked)]),
            "map_mode": self.map_mode,
            # Nothing true and nothing drawn anywhere: MTTR divides by zero here; empty against empty is right.
            "overall_iou": inter / union if union else float(iou.mean()),
            "mean_iou": float(iou.mean()),
            "precision": {str(k): float((iou > k).mean()) for k in PRECISION_AT},
            "samples": {key: row[2] for key, row in self.samples.items()},
        }
        if expressions is not None:
            out["expressions"] = {key: {"iou": self._mean(held), "count": len(held)} for key, held in expressions.items()}
        if self.missing:
            out["missing"] = self.missing
        slices = sliced(facts or {}, lambda keys: {"mean_iou": self._mean(keys)})
        return {**out, "slices": slices} if slices else out

    def _mean(self, keys: Sequence[str]) -> float:
        return float(np.mean([self.samples[key][2] for key in keys]))


def smooth_iou(inter: int, union: int) -> float:
    """(inter + 1e-6) / (union + 1e-6), 1 when both are empty.

    In single precision as MTTR computes it: there an IoU of 1/2 is not above 0.5 but 3/5 is above 0.6 (as doubles).
    """
    return float((np.float32(inter) + np.float32(SMOOTHING)) / (np.float32(union) + np.float32(SMOOTHING)))


def mean_average_precision(ranked: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    """COCO's mAP of samples with one true mask each: scores and IoU of each sample's masks, both (Q,), highest score first.

    Of a sample's masks the first whose IoU reaches the threshold is right, all others are wrong. The precision at each of
    101 recalls is the highest at that recall or above, and 0 where it is not reached; the mean runs over recalls and thresholds.
    """
    scores = np.concatenate([s for s, _ in ranked])
    hits = [iou[:, None] >= IOU_THRESHOLDS for _, iou in ranked]
    right = np.concatenate([hit & (np.cumsum(hit, axis=0) == 1) for hit in hits])[np.argsort(-scores, kind="stable")]
    if not len(right):
        return 0.0
    found = np.cumsum(right, axis=0)
    recall = found / len(ranked)
    precision = found / (np.arange(1, len(right) + 1)[:, None] + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    at = [np.searchsorted(recall[:, i], RECALLS, side="left") for i in range(len(IOU_THRESHOLDS))]
    padded = np.concatenate([envelope, np.zeros((1, len(IOU_THRESHOLDS)))])
    return float(np.mean([padded[rows, i] for i, rows in enumerate(at)]))
