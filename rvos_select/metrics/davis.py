"""The unsupervised protocol of DAVIS 2017, by which Ref-DAVIS17 is scored (Caelles et al., arXiv:1905.00737, section 3).

The definition is the benchmark code's (davis2017-evaluation, `_evaluate_unsupervised`). A prediction is a label map per frame,
one proposal per value, at most 20. The objects are 1 to the largest value of the first frame's annotation; void pixels are
removed from proposals and objects; every frame counts. J and F of every proposal with every object are averaged over the
frames, and the proposals are assigned to the objects so that the sum of (J + F) / 2 is largest: exchanged numbers cost
nothing. An object without proposal is paired with an empty one. Early versions of that code did not ignore void pixels.
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
from rvos_select.metrics.metric import FrameMetrics
from rvos_select.metrics.region_contour import REGION_CONTOUR
from rvos_select.metrics.silhouette import EMPTY, Silhouette

REGION_CONTOUR_ALONE = FrameMetrics([REGION_CONTOUR])
PROPOSALS = 20
"""The largest number of proposals; more are an error."""


@dataclass(frozen=True)
class DavisTruth:
    """The annotation of a video. frame_names: T stems; objects: RleMasks (A, T), object i has the value i + 1; void: (1, T)."""

    video_id: str
    frame_names: tuple[str, ...]
    objects: RleMasks
    void: RleMasks

    @cached_property
    def silhouettes(self) -> list[list[Silhouette]]:
        """The silhouettes of the objects, T lists of A: computed once for the predictions of all annotators."""
        count, frames = self.objects.shape
        return [[Silhouette.of_runs(self.objects.bytes_at(i, t), self.objects.size) for i in range(count)] for t in range(frames)]


def score_maps(
    maps: Iterable[NDArray[np.uint8]],
    truth: DavisTruth,
    strict: bool = False,
    missing: Collection[int] = (),
    metrics: FrameMetrics = REGION_CONTOUR_ALONE,
) -> NDArray[np.float64]:
    """The numbers of each object, means over the frames, float64 (A, metrics.width); by default J and F.

    maps: T label maps (H, W), read one after the other; strict: proposal i is object i, and proposals beyond the last object do
    not count; else they are assigned, by the mean of the numbers of the first metric. missing: indices of objects whose
    prediction is missing: their numbers are 0 and no proposal is assigned to them.
    Raises InputError: more than PROPOSALS. Raises ValueError: other frames or another size than the annotation.
    """
    table = _pairs(maps, truth, metrics)
    scores = np.zeros((truth.objects.shape[0], metrics.width))
    objects = np.array([i for i in range(len(scores)) if i not in missing], np.intp)
    rows, columns = (objects, objects) if strict else _assigned(table[:, :, metrics.columns[0]], objects)
    scores[columns] = table[rows, columns]
    return scores


def _assigned(table: NDArray[np.float64], objects: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Proposals and the objects, among `objects`, that they are assigned to: the sum of their mean numbers is largest."""
    rows, columns = linear_sum_assignment(-table[:, objects].mean(axis=2))
    return rows, objects[columns]


def _pairs(maps: Iterable[NDArray[np.uint8]], truth: DavisTruth, metrics: FrameMetrics) -> NDArray[np.float64]:
    """Numbers of each proposal with each object, means over the frames, float64 (max(P, A), A, metrics.width).

    P is the largest value of all maps; a proposal up to A that no map has is empty.
    """
    (count, frames), size = truth.objects.shape, truth.objects.size
    total, largest, frames_read = np.zeros((max(PROPOSALS, count), count, metrics.width)), count, 0
    has_void = truth.void.area()[0] > 0

    def row(proposal: Silhouette, objects: list[Silhouette]) -> NDArray[np.float64]:
        return np.array([metrics.frame(proposal, other) for other in objects]).reshape(count, metrics.width)

    for t, pixels in enumerate(maps):
        if t >= frames or pixels.shape != size:
            raise ValueError(f"video {truth.video_id}: label map {t} is {pixels.shape}, expected {frames} of {size}")
        largest = max(largest, _largest(pixels, truth, t))
        if has_void[t]:
            pixels = np.where(truth.void.decode(0, t), 0, pixels)
        objects = truth.silhouettes[t]
        frame = np.empty_like(total)
        frame[:] = row(EMPTY, objects)
        for number in np.flatnonzero(np.bincount(pixels.ravel())[1:]) + 1:
            frame[number - 1] = row(Silhouette.of_pixels((pixels == number).view(np.uint8)), objects)
        total, frames_read = total + frame, t + 1
    if frames_read != frames:
        raise ValueError(f"video {truth.video_id}: {frames_read} label maps, expected {frames}")
    return total[:largest] / frames


def _largest(pixels: NDArray[np.uint8], truth: DavisTruth, t: int) -> int:
    """The largest proposal of a label map, also under void pixels. Raises InputError."""
    largest = int(pixels.max(initial=0))
    if largest > PROPOSALS:
        raise InputError(
            f"video {truth.video_id}, frame {truth.frame_names[t]}: proposal {largest}, the DAVIS protocol takes {PROPOSALS}; "
            "number the objects from 1, or leave some out"
        )
    return largest
