"""Mode "small": the tracks found so far, joined across gaps, without duplicates.

Letters: T frames, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks, empty_rle
from rvos_cache.trackers.flow.mask_frames import ENCODED_PIXELS
from rvos_cache.trackers.flow.motion import Motion, apply
from rvos_cache.trackers.spool import ArraySpool

LONGEST_GAP = 18
"""Frames between the end of one track and the start of another beyond which they are not joined."""


class SmallTrack:
    """One track; its masks are kept in `arrays` under its number.

    frame: its prompt frame; colour_class; score: of its prompt; visible: float (T,), the share of its outline that is visible;
    area: int64 (T,), pixels of its masks.
    """

    def __init__(
        self, arrays: ArraySpool, number: int, frame: int, colour_class: int, score: float, frames: int, size: tuple[int, int]
    ) -> None:
        self.frame, self.colour_class, self.score = frame, colour_class, score
        self.visible = np.zeros(frames)
        self.area = np.zeros(frames, np.int64)
        self._arrays, self._number, self._size = arrays, number, size

    def mask(self, t: int) -> NDArray[np.bool_]:
        """The mask (h, w) in frame t, read-only or new."""
        return self._arrays["mask", self._number, t] if self.area[t] else np.zeros(self._size, bool)

    def set_mask(self, t: int, mask: NDArray[np.bool_]) -> None:
        """Set the mask (h, w) in frame t."""
        self.area[t] = np.count_nonzero(mask)
        if self.area[t]:
            self._arrays["mask", self._number, t] = mask
        else:
            self._arrays.pop(("mask", self._number, t))

    def discard(self) -> None:
        """Free its masks."""
        for t in np.flatnonzero(self.area).tolist():
            self._arrays.pop(("mask", self._number, t))

    def absorb(self, other: SmallTrack) -> None:
        """Add the frames of another track, whose masks are freed."""
        for t in np.flatnonzero(other.area).tolist():
            self.set_mask(t, self.mask(t) | other.mask(t))
        self.visible = np.maximum(self.visible, other.visible)
        self.score = max(self.score, other.score)
        other.discard()

    def encode(self) -> list[bytes]:
        """Its T masks, compressed."""
        out = [empty_rle(self._size)] * len(self.area)
        shown = np.flatnonzero(self.area).tolist()
        per_call = max(1, ENCODED_PIXELS // (self._size[0] * self._size[1]))
        for first in range(0, len(shown), per_call):
            part = shown[first : first + per_call]
            encoded = RleMasks.from_dense(np.stack([self.mask(t) for t in part])[None])
            for i, t in enumerate(part):
                out[t] = encoded.bytes_at(0, i)
        return out


def link(tracks: Sequence[SmallTrack], motion: Motion) -> list[SmallTrack]:
    """Join pairs of tracks of one colour class where one starts where the other's motion leads; the best pair first."""
    tracks = list(tracks)
    ends = [_ends(track, motion) for track in tracks]
    while True:
        best: tuple[float, int, int] | None = None
        for i, a in enumerate(tracks):
            for j, b in enumerate(tracks):
                if i != j and a.colour_class == b.colour_class:
                    cost = _link_cost(ends[i], ends[j])
                    if cost < 1 and (best is None or cost < best[0]):
                        best = (cost, i, j)
        if best is None:
            return tracks
        _, i, j = best
        tracks[i].absorb(tracks[j])
        ends[i] = _ends(tracks[i], motion)
        del tracks[j], ends[j]


@dataclass(frozen=True, eq=False)
class Ends:
    """The two ends of a track: its first and last visible frame, centres (2,) and velocities (2,) there with the background held
    still, and its median area."""

    first: int
    last: int
    start: NDArray[np.float64]
    stop: NDArray[np.float64]
    start_velocity: NDArray[np.float64]
    stop_velocity: NDArray[np.float64]
    area: float


def _ends(track: SmallTrack, motion: Motion) -> Ends:
    """Centre and velocity are measured in frames in which most of the object is visible, and extrapolated to the ends."""
    visible = np.nonzero(track.visible > 0)[0]
    frames = len(track.area)
    median = float(np.median(track.area[visible]))
    complete = [int(t) for t in visible if track.area[t] > 0.75 * median]
    screen = np.zeros((frames, 2))
    for t in complete:
        screen[t] = _centre(track.mask(t))
    background = np.zeros((frames, 2))
    # The displacement of the background at the frame's middle is close enough to that at the object.
    middle = np.array([[motion.size[1] / 2, motion.size[0] / 2]])
    for t in range(frames - 1):
        background[t + 1] = background[t] + apply(motion.camera[t], middle)[0] - middle[0]
    position = screen - background
    head, tail = complete[:6], complete[-6:]
    start_velocity = (position[head[-1]] - position[head[0]]) / max(head[-1] - head[0], 1)
    stop_velocity = (position[tail[-1]] - position[tail[0]]) / max(tail[-1] - tail[0], 1)
    first, last = int(visible[0]), int(visible[-1])
    start = position[head[0]] - start_velocity * (head[0] - first)
    stop = position[tail[-1]] + stop_velocity * (last - tail[-1])
    return Ends(first, last, start, stop, start_velocity, stop_velocity, median)


def _link_cost(a: Ends, b: Ends) -> float:
    """How badly `b` continues `a`: the distance over what the gap allows, plus the difference of sizes; below 1 is good."""
    gap = b.first - a.last
    if not 1 <= gap <= LONGEST_GAP or not 0.4 < a.area / b.area < 2.5:
        return np.inf
    displacement = b.start - a.stop
    velocities = (a.stop_velocity, b.start_velocity, (a.stop_velocity + b.start_velocity) / 2)
    distance = min(float(np.linalg.norm(displacement - v * gap)) for v in velocities)
    return distance / (7 + 1.2 * gap) + 0.3 * abs(float(np.log(a.area / b.area)))


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    ys, xs = np.nonzero(mask)
    return np.array([xs.mean(), ys.mean()])


def distinct(tracks: Sequence[SmallTrack], max_iou: float) -> list[SmallTrack]:
    """Of tracks with a mean IoU over frames above `max_iou`, the one that is visible longer."""
    out: list[SmallTrack] = []
    for track in sorted(tracks, key=lambda k: -(k.visible > 0).sum()):
        if not any(_mean_iou(track, other) > max_iou for other in out):
            out.append(track)
    return out


def _mean_iou(a: SmallTrack, b: SmallTrack) -> float:
    """Over the frames in which either has pixels; NaN if there is none."""
    intersection = np.zeros(len(a.area), np.int64)
    for t in np.flatnonzero((a.area > 0) & (b.area > 0)).tolist():
        intersection[t] = np.count_nonzero(a.mask(t) & b.mask(t))
    union = a.area + b.area - intersection
    return float((intersection / np.maximum(union, 1))[union > 0].mean())
