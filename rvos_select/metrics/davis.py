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
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_select.metrics.silhouette import EMPTY, Silhouette, j_and_f

PROPOSALS = 20
"""More are refused."""


@dataclass(frozen=True)
class DavisTruth:
    """The annotation of a video. frame_names: T stems; objects: RleMasks (A, T), object i has the value i + 1; void: (1, T)."""

    video_id: str
    frame_names: tuple[str, ...]
    objects: RleMasks
    void: RleMasks

    @cached_property
    def silhouettes(self) -> list[list[Silhouette]]:
        """Those of the A objects in each frame: every annotator's predictions are compared with them."""
        count, frames = self.objects.shape
        return [[Silhouette.of_runs(self.objects.bytes_at(i, t), self.objects.size) for i in range(count)] for t in range(frames)]


def score_maps(
    maps: Iterable[NDArray[np.uint8]], truth: DavisTruth, strict: bool = False, missing: Collection[int] = ()
) -> NDArray[np.float64]:
    """J and F of each object, the means over the frames, float64 (A, 2). maps: T label maps (H, W), taken one after the other.

    strict: proposal i is object i, and proposals beyond the last object do not count; else they are assigned. missing: indices
    of objects whose prediction is not there: they score 0 and no proposal is assigned to them.
    Raises InputError: more than PROPOSALS. Raises ValueError: other frames or another size than the annotation.
    """
    table = _pairs(maps, truth)
    scores = np.zeros((truth.objects.shape[0], 2))
    wanted = np.array([i for i in range(len(scores)) if i not in missing], np.intp)
    rows, columns = (wanted, wanted) if strict else _assigned(table, wanted)
    scores[columns] = table[rows, columns]
    return scores


def _assigned(table: NDArray[np.float64], wanted: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Proposals and objects, of `wanted`, so that the sum of their means of J and F is largest."""
    rows, columns = linear_sum_assignment(-table[:, wanted].mean(axis=2))
    return rows, wanted[columns]


def _pairs(maps: Iterable[NDArray[np.uint8]], truth: DavisTruth) -> NDArray[np.float64]:
    """J and F of each proposal with each object, means over the frames, float64 (max(P, A), A, 2).

    P is the largest value of all maps; proposals up to A are there, if empty.
    """
    (count, frames), size = truth.objects.shape, truth.objects.size
    total, top, seen = np.zeros((max(PROPOSALS, count), count, 2)), count, 0
    dirty = truth.void.area()[0] > 0
    for t, pixels in enumerate(maps):
        if t >= frames or pixels.shape != size:
            raise ValueError(f"video {truth.video_id}: label map {t} is {pixels.shape}, wanted {frames} of {size}")
        top = max(top, _largest(pixels, truth, t))
        if dirty[t]:
            pixels = np.where(truth.void.decode(0, t), 0, pixels)
        objects = truth.silhouettes[t]
        frame = np.empty_like(total)
        frame[:] = _row(EMPTY, objects)
        for number in np.flatnonzero(np.bincount(pixels.ravel())[1:]) + 1:
            frame[number - 1] = _row(Silhouette.of_pixels((pixels == number).view(np.uint8)), objects)
        total, seen = total + frame, t + 1
    if seen != frames:
        raise ValueError(f"video {truth.video_id}: {seen} label maps, wanted {frames}")
    return total[:top] / frames


def _row(proposal: Silhouette, objects: list[Silhouette]) -> NDArray[np.float64]:
    """J and F of a proposal with each object of one frame, (A, 2)."""
    return np.array([j_and_f(proposal, other) for other in objects]).reshape(len(objects), 2)


def _largest(pixels: NDArray[np.uint8], truth: DavisTruth, t: int) -> int:
    """The number of proposals that a label map has, also under void pixels. Raises InputError."""
    found = int(pixels.max(initial=0))
    if found > PROPOSALS:
        raise InputError(
            f"video {truth.video_id}, frame {truth.frame_names[t]}: proposal {found}, the DAVIS protocol takes {PROPOSALS}; "
            "number the objects from 1, or leave some out"
        )
    return found
