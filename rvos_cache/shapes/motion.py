"""Motion of an object: one path per behaviour, in world pixels.

Letters: T frames. The camera pans at most CAMERA_X by CAMERA_Y pixels over a whole video, centred on the origin, and
every path with a direction travels at least 34 pixels. Therefore directions on the screen and in the world agree, and an object
that stands still in the world does not appear to travel: a statement is true of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 96, 160
CAMERA_X, CAMERA_Y = 10.0, 4.0

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}

BEHAVIOURS: dict[str, float] = {
    "go": 0.14, "still": 0.06, "stop": 0.09, "start": 0.09, "pause": 0.05, "speedup": 0.06, "slowdown": 0.06,
    "back": 0.08, "corner": 0.10, "circle": 0.09, "grow": 0.05, "shrink": 0.05, "swell": 0.04, "dip": 0.04,
    "enter": 0.06, "leave": 0.05,
}  # fmt: skip
"""Behaviour -> the weight with which it is sampled."""

MIRRORS = {
    "stop": "start", "start": "stop", "speedup": "slowdown", "slowdown": "speedup", "back": "back", "corner": "corner",
    "circle": "circle", "grow": "shrink", "shrink": "grow", "swell": "dip", "dip": "swell",
}  # fmt: skip
"""Behaviour -> the behaviour with the same motions in reverse order, which no single frame and no average distinguishes."""

Paths = NDArray[np.float64]


@dataclass(frozen=True)
class Path:
    """The motion of one object's centre. position: (T, 2) x y in world pixels; scale: (T,) relative to the object's radius.

    legs: the directions of its straight parts in order (of a circle: "clockwise" or "anticlockwise"); change: the frame of its
    event, or -1.
    """

    behaviour: str
    legs: tuple[str, ...]
    position: Paths
    scale: Paths
    change: int = -1

    def mirrored(self) -> tuple[str, tuple[str, ...]] | None:
        """Return behaviour and legs of the path with the same motions in reverse order; None if there is none."""
        behaviour = MIRRORS.get(self.behaviour)
        if behaviour is None:
            return None
        if behaviour == "circle":
            return behaviour, ("anticlockwise" if self.legs == ("clockwise",) else "clockwise",)
        return behaviour, self.legs[::-1]


def _pick(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a uniform random number; the middle if the range is empty (an object too large for the frame)."""
    return float(rng.uniform(low, high)) if high > low else (low + high) / 2


def _bounds(radius: float) -> tuple[Paths, Paths]:
    """Return the least and greatest centre (x, y) at which an object of `radius` stays inside the frame during the whole pan."""
    margin = np.array([radius + CAMERA_X / 2 + 1, radius + CAMERA_Y / 2 + 1])
    return margin, np.array([WIDTH, HEIGHT]) - margin


def _along(rng: np.random.Generator, radius: float, steps: Paths) -> Paths:
    """Return a path (T, 2) with the offsets `steps` (T, 2) from a random start, all of it inside the frame."""
    low, high = _bounds(radius)
    first, last = low - steps.min(0), high - steps.max(0)
    return np.array([_pick(rng, first[0], last[0]), _pick(rng, first[1], last[1])]) + steps


def _distance(rng: np.random.Generator, direction: str, radius: float, frames: int, share: float) -> float:
    """Return the pixels to travel in `share` of the frames: slow or fast, and at most what fits into the frame."""
    room = (WIDTH - CAMERA_X if direction in ("left", "right") else HEIGHT - CAMERA_Y) - 2 * radius - 3
    speed = rng.uniform(1.2, 1.8) if rng.random() < 0.45 else rng.uniform(3.1, 3.9)
    return float(np.clip(speed * frames * share, 36, min(room, 116)))


def straight(rng: np.random.Generator, radius: float, frames: int, direction: str) -> Paths:
    """Return a path (T, 2) of constant speed in one direction."""
    steps = np.linspace(0, 1, frames)[:, None] * np.array(DIRECTIONS[direction])
    return _along(rng, radius, steps * _distance(rng, direction, radius, frames, 1))


def _ramp(frames: int, start: float, stop: float) -> Paths:
    """Return (T,): 0 before frame start*(T-1), 1 after stop*(T-1), linear between."""
    u = np.linspace(0, 1, frames)
    return np.clip((u - start) / (stop - start), 0, 1)


def _legs(rng: np.random.Generator, behaviour: str, legs: tuple[str, ...], radius: float, frames: int, change: float) -> Paths:
    """Return a path (T, 2) of one or two straight legs with an event after the fraction `change` of the video."""
    axis = np.array(DIRECTIONS[legs[0]])
    first, second = _ramp(frames, 0, change)[:, None], _ramp(frames, change, 1)[:, None]
    if behaviour == "corner":
        lengths = [rng.uniform(40, 64) if leg in ("left", "right") else rng.uniform(36, 48) for leg in legs]
        across = np.array(DIRECTIONS[legs[1]])
        return _along(rng, radius, first * axis * lengths[0] + second * across * lengths[1])
    if behaviour == "back":
        return _along(rng, radius, (first - second) * axis * min(_distance(rng, legs[0], radius, frames, 0.5), 64))
    if behaviour == "stop":
        return _along(rng, radius, first * axis * _distance(rng, legs[0], radius, frames, change))
    if behaviour == "start":
        return _along(rng, radius, second * axis * _distance(rng, legs[0], radius, frames, 1 - change))
    far = max(_distance(rng, legs[0], radius, frames, 1), 58.0)
    if behaviour == "pause":
        return _along(rng, radius, (_ramp(frames, 0, change - 0.16) + _ramp(frames, change + 0.16, 1))[:, None] * axis * far / 2)
    slow, fast = (first, second) if behaviour == "speedup" else (second, first)
    # Three times as fast in one part as in the other.
    share = change if behaviour == "speedup" else 1 - change
    slow_far = far * share / (share + 3 * (1 - share))
    return _along(rng, radius, axis * (slow * slow_far + fast * (far - slow_far)))


def _circle(rng: np.random.Generator, radius: float, frames: int, sense: str) -> Paths:
    """Return a full circle (T, 2), which ends where it starts. Increasing angles are clockwise, because y points down."""
    reach = rng.uniform(17, 21) if radius < 12 else rng.uniform(16, 18)
    sign = 1 if sense == "clockwise" else -1
    angle = rng.uniform(0, 2 * np.pi) + sign * np.linspace(0, 2 * np.pi, frames)
    return _along(rng, radius, reach * np.stack([np.cos(angle), np.sin(angle)], 1))


def _outside(rng: np.random.Generator, behaviour: str, direction: str, radius: float, frames: int) -> Paths:
    """Return a straight path (T, 2) into the frame from outside, or the same reversed in time and direction.

    The object is entirely outside for between 5 frames and 40% of the video, and moves at constant speed in the rest.
    """
    axis = np.array(DIRECTIONS[direction], float)
    away = int(rng.integers(5, max(6, int(0.4 * frames))))
    steps = np.maximum(np.arange(frames) - away, 0.0)
    speed = float(np.clip(rng.uniform(45, 100 if axis[0] else 62) / max(frames - 1 - away, 1), 1.3, 4.2))
    if behaviour == "leave":
        steps, axis = steps[::-1], -axis
    extent, pan = (WIDTH, CAMERA_X) if axis[0] else (HEIGHT, CAMERA_Y)
    beyond = 1.35 * radius + pan / 2 + 1  # the tips of a star are 1.3 radii from its centre
    edge = -beyond if axis.sum() > 0 else extent + beyond
    low, high = _bounds(radius)
    path = np.array([_pick(rng, low[0], high[0]), _pick(rng, low[1], high[1])]) * (axis == 0)
    return path + np.abs(axis) * edge + axis * speed * steps[:, None]


def sample_legs(rng: np.random.Generator, behaviour: str) -> tuple[str, ...]:
    """Return random legs for `behaviour`, two thirds horizontal; those of a corner are horizontal and vertical in any order."""
    if behaviour == "circle":
        return (str(rng.choice(["clockwise", "anticlockwise"])),)
    if behaviour in ("still", "grow", "shrink", "swell", "dip"):
        return ()
    if behaviour == "corner":
        pair = str(rng.choice(["left", "right"])), str(rng.choice(["up", "down"]))
        return pair if rng.random() < 0.5 else pair[::-1]
    leg = str(rng.choice(["left", "right", "up", "down"], p=[0.34, 0.34, 0.16, 0.16]))
    return (leg, OPPOSITE[leg]) if behaviour == "back" else (leg,)


def sample_path(
    rng: np.random.Generator, behaviour: str, radius: float, frames: int, legs: tuple[str, ...] | None = None
) -> Path:
    """Return a path of `behaviour` for an object of `radius` pixels. legs: default, sampled."""
    legs = sample_legs(rng, behaviour) if legs is None else legs
    share = rng.uniform(0.35, 0.65)
    change = round(share * (frames - 1))
    scale = np.ones(frames)
    if behaviour == "go":
        return Path(behaviour, legs, straight(rng, radius, frames, legs[0]), scale)
    if behaviour == "circle":
        return Path(behaviour, legs, _circle(rng, radius, frames, legs[0]), scale)
    if behaviour in ("enter", "leave"):
        return Path(behaviour, legs, _outside(rng, behaviour, legs[0], radius, frames), scale)
    if legs:
        return Path(behaviour, legs, _legs(rng, behaviour, legs, radius, frames, share), scale, change)
    small, large = rng.uniform(0.7, 0.76), rng.uniform(1.36, 1.46)
    if behaviour in ("grow", "shrink"):
        first, last = (small, large) if behaviour == "grow" else (large, small)
        scale, change = np.linspace(first, last, frames), -1
    elif behaviour in ("swell", "dip"):
        ends, middle = (small, large) if behaviour == "swell" else (large, small)
        scale = ends + (middle - ends) * (_ramp(frames, 0, share) - _ramp(frames, share, 1))
    else:
        change = -1
    return Path(behaviour, legs, _along(rng, radius * scale.max(), np.zeros((frames, 2))), scale, change)


def follow(leader: Path, gap: float) -> Path:
    """Return the path of an object that stays `gap` pixels behind a leader on a straight path."""
    back = np.array(DIRECTIONS[leader.legs[0]]) * gap
    return Path("chase", leader.legs, leader.position - back, leader.scale)
