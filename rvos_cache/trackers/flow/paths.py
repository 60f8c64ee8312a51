"""A track's measurements over its whole life: gaps bridged, background motion taken off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_cache.trackers.flow.motion import Motion, apply
from rvos_cache.trackers.flow.shape import GREYS, HUES, PROFILE, MaskStats

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Life:
    """One track. visible bool (T,); first, last: its first and last visible frames; screen, world (T, 2) x y: centres on
    screen and with the background held still (both equal in frame `first`); box (T, 4); area (T,); shape (T, 7);
    profile (T, 16); colour (T, 9); histogram (T, 16); flow (T, 6). Working pixels."""

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


def paths(stats: Sequence[MaskStats | None], motion: Motion) -> Life:
    """The life of one track from its T measurements (None where it is hidden)."""
    t = len(stats)
    visible = np.array([s is not None for s in stats], bool)
    shown = [s for s in stats if s is not None]
    if not shown:
        two, four, one = np.zeros((t, 2)), np.zeros((t, 4)), np.ones(t)
        shape, profile, colour = np.zeros((t, 7)), np.zeros((t, PROFILE)), np.zeros((t, 9))
        bins, flow = np.zeros((t, HUES + GREYS)), np.zeros((t, 6))
        return Life(
            motion.size, visible, 0, t - 1, two, two, four, one, shape, profile, colour, bins, flow
        )  # fmt: skip
    at = np.nonzero(visible)[0]
    first, last = int(at[0]), int(at[-1])
    # Index of the measurement that each frame keeps: the last visible one, before the first visible one that.
    held = np.maximum(np.searchsorted(at, np.arange(t), side="right") - 1, 0)
    centre = np.stack([s.centre for s in shown])
    screen = np.stack([np.interp(np.arange(t), at, centre[:, k]) for k in (0, 1)], 1)
    corners = np.stack([s.box for s in shown])
    box = corners[held] + np.tile(screen - centre[held], 2)
    world = steady(screen, motion, first)

    def column(name: str) -> Array:
        return np.stack([np.asarray(getattr(s, name), float) for s in shown])[held]

    parts = [column(name) for name in ("area", "shape", "profile", "colour", "histogram", "flow")]
    return Life(motion.size, visible, first, last, screen, world, box, *parts)


def steady(screen: Array, motion: Motion, first: int) -> Array:
    """Centres (T, 2) with each step's background motion taken off; equal to the screen's in frame `first`."""
    steps = np.zeros_like(screen)
    for t in range(len(screen) - 1):
        steps[t + 1] = screen[t + 1] - apply(motion.camera[t], screen[t : t + 1])[0]
    world = np.cumsum(steps, axis=0)
    return np.asarray(world - world[first] + screen[first], np.float64)


def velocity(position: Array, first: int, last: int) -> Array:
    """Pixels per frame (T, 2): central differences of `position` (T, 2) within [first, last], one-sided at its ends; 0
    where the track stands still outside."""
    frames = np.arange(len(position))
    before, after = np.clip(frames - 1, first, last), np.clip(frames + 1, first, last)
    return np.asarray((position[after] - position[before]) / np.maximum(after - before, 1)[:, None], np.float64)


def growth(area: Array, first: int, last: int) -> Array:
    """Growth of the log area per frame (T,): the slope of the least-squares line through the frames up to three away within
    [first, last], since an outline wobbles by a pixel; 0 outside."""
    frames = np.arange(len(area))
    at = np.clip(frames[:, None] + np.arange(-3, 4), first, last)
    away = at - at.mean(1, keepdims=True)
    slope = (away * np.log(area)[at]).sum(1) / np.maximum((away * away).sum(1), 1e-6)
    return np.asarray(np.where((frames < first) | (frames > last), 0.0, slope), np.float64)
