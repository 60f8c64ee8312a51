"""Which propagated tracks cover the same object: stitching of tracks at key frames, and removal of duplicates.

Letters: N tracks, K stitched tracks, T frames, h w pixels at working resolution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

CANDIDATES_PER_PASS = 8
"""Tracks whose overlaps are gathered in one pass over the frames."""


def overlaps(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """IoU (N, N) of the masks (N, h, w) of one frame, on every third pixel of each axis; 0 where both are empty."""
    sampled = masks[:, ::3, ::3].reshape(len(masks), -1).astype(np.float32)
    intersection, area = sampled @ sampled.T, sampled.sum(1)
    return np.asarray(intersection / np.maximum(area[:, None] + area - intersection, 1), np.float32)


class Meetings:
    """For each pair of tracks with different prompt frames, how well they overlap between the two frames and where.

    iou: float32 (N, N), the highest IoU between the two prompt frames, both included; frame: int64 (N, N), where a change from
    one track to the other fits best: the IoU is high there, and the frame is rather in the middle than near either prompt.
    """

    def __init__(self, starts: NDArray[np.int32]) -> None:
        n = len(starts)
        self.low, self.high = np.minimum.outer(starts, starts), np.maximum.outer(starts, starts)
        self.middle = np.add.outer(starts, starts) / 2
        self.iou = np.zeros((n, n), np.float32)
        self.frame = np.zeros((n, n), np.int64)
        self._fit = np.full((n, n), -np.inf)

    def add(self, t: int, iou: NDArray[np.float32]) -> None:
        """Take the overlaps (N, N) of frame t into account; frames must be added in order."""
        between = (self.low <= t) & (t <= self.high) & (self.low < self.high)
        distance = np.abs(t - self.middle) / np.maximum(self.high - self.low, 1)
        fit = iou - 0.1 * distance
        better = between & (fit > self._fit)
        self._fit[better], self.frame[better] = fit[better], t
        self.iou[between] = np.maximum(self.iou, iou)[between]


def stitch(meetings: Meetings, starts: NDArray[np.int32], frames: int, min_iou: float) -> NDArray[np.int64]:
    """The track that each stitched track follows in each frame, (N, T). starts: prompt frames (N,).

    Stitched track n follows track n at its prompt. Towards each end of the video it changes at every key frame to the prompt
    there whose track overlaps best on the way, if the IoU reaches `min_iou`; a new prompt has not drifted yet.
    """
    keys = np.unique(starts)
    sources = np.repeat(np.arange(len(starts))[:, None], frames, 1)
    for track in range(len(starts)):
        for direction in (1, -1):
            current = track
            for key in keys[(keys - int(starts[track])) * direction > 0][::direction]:
                prompted = np.nonzero(starts == key)[0]
                best = int(prompted[meetings.iou[current, prompted].argmax()])
                if meetings.iou[current, best] < min_iou:
                    continue
                change = int(meetings.frame[current, best])
                current = best
                if direction > 0:
                    sources[track, change + 1 :] = current
                else:
                    sources[track, :change] = current
    return sources


def distinct(
    overlap: Callable[[int], NDArray[np.float32]], sources: NDArray[np.int64], visible: NDArray[np.bool_],
    order: NDArray[np.int64], max_iou: float, count: int,
) -> NDArray[np.int64]:  # fmt: skip
    """The first `count` tracks of `order` without duplicates of earlier ones.

    overlap: t -> IoU (N, N) in frame t; sources: int64 (K, T) of `stitch`; visible: bool (K, T). A duplicate has a mean IoU above
    `max_iou` with an earlier track, over the frames in which either is visible.
    """
    frames = sources.shape[1]
    every = np.arange(frames)
    kept: list[int] = []
    for first in range(0, len(order), CANDIDATES_PER_PASS):
        candidates = order[first : first + CANDIDATES_PER_PASS]
        if len(kept) == count:
            break
        rows = np.stack([overlap(t)[sources[candidates, t]] for t in range(frames)], 1)
        for row, candidate in zip(rows, candidates):
            if len(kept) == count:
                break
            if kept:
                either = (visible[candidate] | visible[kept]).sum(1)
                iou = row[every, sources[kept]].sum(1) / np.maximum(either, 1)
                if (iou > max_iou).any():
                    continue
            kept.append(int(candidate))
    return np.array(kept, np.int64)
