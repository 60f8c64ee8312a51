"""The measurements of a track over all frames: gaps interpolated, camera motion subtracted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_cache.trackers.flow.motion import Motion, apply
from rvos_cache.trackers.flow.shape import COLUMNS, MEASUREMENTS

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One track over T frames, in working pixels.

    size: (h, w) of the frame; visible: bool (T,); first, last: its first and last visible frames; screen, world: (T, 2) x y,
    centres in the frame and with the background held still (both equal in frame `first`); box: (T, 4) x0 y0 x1 y1; area: (T,);
    shape: (T, 7); profile: (T, 16); colour: (T, 9); histogram: (T, 16); flow: (T, 6).
    """

    size: tuple[int, int]
    visible: NDArray[np.bool_]
    first: int
    last: int
    screen: Array
    world: Array
    box: Array
    area: Array
    shape: Array
    profile: Array
    colour: Array
    histogram: Array
    flow: Array

    @property
    def diagonal(self) -> float:
        """Of the frame, in working pixels."""
        return float(np.hypot(*self.size))


def trajectory(rows: Array, motion: Motion) -> Trajectory:
    """The trajectory of one track from its measurements (T, WIDTH), NaN in the frames in which it is not visible."""
    t = len(rows)
    visible = ~np.isnan(rows[:, COLUMNS["area"]][:, 0])
    if not visible.any():
        columns = {name: np.zeros((t, size)) for name, size in MEASUREMENTS.items()}
        first, last, screen, world, area = 0, t - 1, columns["centre"], columns["centre"], np.ones(t)
    else:
        at = np.nonzero(visible)[0]
        first, last = int(at[0]), int(at[-1])
        # The row that each frame repeats: that of the last visible frame, before the first visible frame that of the first one.
        repeated = at[np.maximum(np.searchsorted(at, np.arange(t), side="right") - 1, 0)]
        columns = {name: np.ascontiguousarray(rows[repeated, part]) for name, part in COLUMNS.items()}
        centre = rows[at, COLUMNS["centre"]]
        screen = np.stack([np.interp(np.arange(t), at, centre[:, k]) for k in (0, 1)], 1)
        columns["box"] = columns["box"] + np.tile(screen - columns["centre"], 2)
        world, area = steady(screen, motion, first), columns["area"][:, 0]
    parts = [columns[name] for name in ("shape", "profile", "colour", "histogram", "flow")]
    return Trajectory(motion.size, visible, first, last, screen, world, columns["box"], area, *parts)


def steady(screen: Array, motion: Motion, first: int) -> Array:
    """Centres (T, 2) without the motion of the background, accumulated frame by frame; equal to `screen` in frame `first`."""
    steps = np.zeros_like(screen)
    for t in range(len(screen) - 1):
        steps[t + 1] = screen[t + 1] - apply(motion.camera[t], screen[t : t + 1])[0]
    world = np.cumsum(steps, axis=0)
    return np.asarray(world - world[first] + screen[first], np.float64)


def velocity(position: Array, first: int, last: int) -> Array:
    """Pixels per frame (T, 2): central differences of `position` (T, 2) in [first, last], one-sided at its ends, 0 outside."""
    frames = np.arange(len(position))
    before, after = np.clip(frames - 1, first, last), np.clip(frames + 1, first, last)
    return np.asarray((position[after] - position[before]) / np.maximum(after - before, 1)[:, None], np.float64)


def growth(area: Array, first: int, last: int) -> Array:
    """Growth of the log area per frame (T,): the slope of the least-squares line through the frames up to three away within
    [first, last], since an outline is only exact to a pixel; 0 outside."""
    frames = np.arange(len(area))
    neighbours = np.clip(frames[:, None] + np.arange(-3, 4), first, last)
    offsets = neighbours - neighbours.mean(1, keepdims=True)
    slope = (offsets * np.log(area)[neighbours]).sum(1) / np.maximum((offsets * offsets).sum(1), 1e-6)
    return np.asarray(np.where((frames < first) | (frames > last), 0.0, slope), np.float64)
