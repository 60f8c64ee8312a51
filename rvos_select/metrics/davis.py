"""The unsupervised protocol of DAVIS 2017, by which Ref-DAVIS17 is scored (Caelles et al., arXiv:1905.00737, section 3).

The definition is the benchmark code's (davis2017-evaluation, `_evaluate_unsupervised`). A prediction is a label map per frame,
one proposal per value, 20 at most. The objects are 1 to the largest value of the first frame's annotation; void pixels are
taken out of proposals and objects; every frame counts. J and F of every proposal with every object are averaged over the
frames, and the proposals are assigned to the objects so that the sum of (J + F) / 2 is largest: exchanged numbers are
forgiven. An object that no proposal is left for is paired with an empty one. Early versions of that code did not ignore void.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, empty_rle, encode
from rvos_select.metrics.boundary import f
from rvos_select.metrics.region import j

PROPOSALS = 20
"""More are refused."""


@dataclass(frozen=True)
class DavisTruth:
    """The annotation of a video. frame_names: T stems; objects: RleMasks (A, T), object i has the value i + 1; void: (1, T)."""

    video_id: str
    frame_names: tuple[str, ...]
    objects: RleMasks
    void: RleMasks


def proposals(maps: Iterable[NDArray[np.uint8]], truth: DavisTruth) -> RleMasks:
    """The proposals of T label maps (H, W) without the void pixels, RleMasks (P, T); P is the largest value of all maps.

    Raises InputError: more than PROPOSALS. Raises ValueError: other frames or another size than the annotation.
    """
    frames, size = truth.objects.shape[1], truth.objects.size
    dirty, empty = truth.void.area()[0] > 0, empty_rle(size)
    found: list[dict[int, bytes]] = []
    top = 0
    for t, pixels in enumerate(maps):
        if t >= frames or pixels.shape != size:
            raise ValueError(f"video {truth.video_id}: label map {t} is {pixels.shape}, wanted {frames} of {size}")
        top = max(top, int(pixels.max(initial=0)))
        if top > PROPOSALS:
            raise InputError(
                f"video {truth.video_id}, frame {truth.frame_names[t]}: proposal {top}, the DAVIS protocol takes {PROPOSALS}; "
                "number the objects from 1, or leave some out"
            )
        if dirty[t]:
            pixels = np.where(truth.void.decode(0, t), 0, pixels)
        held = np.flatnonzero(np.bincount(pixels.ravel(), minlength=1))
        found.append({int(n): encode(pixels == n) for n in held if n})
    if len(found) != frames:
        raise ValueError(f"video {truth.video_id}: {len(found)} label maps, wanted {frames}")
    rows = [[held.get(n, empty) for held in found] for n in range(1, top + 1)]
    return RleMasks.from_bytes(rows, frames, size)


def score_objects(found: RleMasks, objects: RleMasks, strict: bool = False, missing: Collection[int] = ()) -> NDArray[np.float64]:
    """J and F of each object, the means over the frames, float64 (A, 2).

    found: RleMasks (P, T) and objects: (A, T), both without void pixels. strict: proposal i is object i, and proposals beyond
    the last object do not count; else they are assigned. missing: indices of objects whose prediction is not there: they
    score 0 and no proposal is assigned to them.
    """
    (p, frames), a = found.shape, objects.shape[0]
    if p < a:
        found = RleMasks.concatenate([found, RleMasks.empty(a - p, frames, objects.size)])
    scores = np.zeros((a, 2))
    wanted = [i for i in range(a) if i not in missing]
    if strict:
        for i in wanted:
            scores[i] = _means(found.select([i]), objects.select([i]))
        return scores
    table = np.zeros((found.shape[0], len(wanted), 2))
    for row in range(found.shape[0]):
        one = found.select([row])
        for column, i in enumerate(wanted):
            table[row, column] = _means(one, objects.select([i]))
    for row, column in zip(*linear_sum_assignment(-table.mean(axis=2))):
        scores[wanted[column]] = table[row, column]
    return scores


def _means(prediction: RleMasks, truth: RleMasks) -> tuple[float, float]:
    return float(j(prediction, truth).mean()), float(f(prediction, truth).mean())
