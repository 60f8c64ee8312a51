"""How an object moves: one path per behaviour, in world pixels.

Letters: T frames. The camera pans at most CAMERA_X by CAMERA_Y pixels over a whole video, centred on the origin, and
every path with a direction travels at least 34 pixels. So a direction seen on the screen is the direction in the world,
and an object that stands still on the ground never seems to travel: statements hold in both readings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 96, 160
CAMERA_X, CAMERA_Y = 10.0, 4.0

DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BEHAVIOURS = ("go", "still", "stop", "start", "back", "corner", "circle", "grow", "shrink", "enter", "leave")
# Still and straight objects are the ones that most statements are compared with; the rest are about equally frequent.
WEIGHTS = (0.19, 0.08, 0.11, 0.07, 0.11, 0.06, 0.09, 0.06, 0.06, 0.09, 0.08)

Paths = NDArray[np.float64]


@dataclass(frozen=True)
class Path:
    """The centre of one object: position (T, 2) x y in world pixels, scale (T,) relative to its radius."""

    behaviour: str
    direction: str
    position: Paths
    scale: Paths


def _pick(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number; the middle where the range is empty (an object too large for its lane)."""
    return float(rng.uniform(low, high)) if high > low else (low + high) / 2


def _bounds(radius: float) -> tuple[Paths, Paths]:
    """Least and greatest centre (x, y) at which an object of `radius` stays inside the frame during the whole pan."""
    margin = np.array([radius + CAMERA_X / 2 + 1, radius + CAMERA_Y / 2 + 1])
    return margin, np.array([WIDTH, HEIGHT]) - margin


def _along(rng: np.random.Generator, radius: float, steps: Paths) -> Paths:
    """A path with the offsets `steps` (T, 2) from its start, placed at random so that all of it is inside the frame."""
    low, high = _bounds(radius)
    first, last = low - steps.min(0), high - steps.max(0)
    return np.array([_pick(rng, first[0], last[0]), _pick(rng, first[1], last[1])]) + steps


def _distance(rng: np.random.Generator, direction: str, radius: float, frames: int, share: float) -> float:
    """Pixels to travel in `share` of the frames: slow or fast, never more than the frame has room for."""
    room = (WIDTH - CAMERA_X if direction in ("left", "right") else HEIGHT - CAMERA_Y) - 2 * radius - 3
    speed = rng.uniform(1.2, 1.8) if rng.random() < 0.45 else rng.uniform(3.1, 3.9)
    return float(np.clip(speed * frames * share, 36, min(room, 116)))


def straight(rng: np.random.Generator, radius: float, frames: int, direction: str) -> Paths:
    """(T, 2): constant speed in one direction."""
    steps = np.linspace(0, 1, frames)[:, None] * np.array(DIRECTIONS[direction])
    return _along(rng, radius, steps * _distance(rng, direction, radius, frames, 1))


def _ramp(frames: int, start: float, stop: float) -> Paths:
    """(T,): 0 before frame start*(T-1), 1 after stop*(T-1), linear between."""
    u = np.linspace(0, 1, frames)
    return np.clip((u - start) / (stop - start), 0, 1)


def _two_legs(rng: np.random.Generator, behaviour: str, direction: str, radius: float, frames: int) -> Paths:
    """(T, 2) for stop, start, back and corner: the change falls between 40% and 60% of the video."""
    change = rng.uniform(0.4, 0.6)
    axis = np.array(DIRECTIONS[direction])
    first, second = _ramp(frames, 0, change)[:, None], _ramp(frames, change, 1)[:, None]
    if behaviour == "stop":
        return _along(rng, radius, first * axis * _distance(rng, direction, radius, frames, change))
    if behaviour == "start":
        return _along(rng, radius, second * axis * _distance(rng, direction, radius, frames, 1 - change))
    there = min(_distance(rng, direction, radius, frames, 0.5), 64)
    if behaviour == "back":
        return _along(rng, radius, (first - second) * axis * there)
    across = axis[::-1] * rng.choice([-1, 1])
    return _along(rng, radius, first * axis * there + second * across * rng.uniform(36, 48))


def _circle(rng: np.random.Generator, radius: float, frames: int) -> tuple[str, Paths]:
    """One whole turn, so that start and end agree. On a screen, where y points down, growing angles go clockwise."""
    reach = rng.uniform(17, 21) if radius < 12 else rng.uniform(16, 18)
    sign = int(rng.choice([-1, 1]))
    angle = rng.uniform(0, 2 * np.pi) + sign * np.linspace(0, 2 * np.pi, frames)
    steps = reach * np.stack([np.cos(angle), np.sin(angle)], 1)
    return ("clockwise" if sign > 0 else "anticlockwise"), _along(rng, radius, steps)


def _outside(rng: np.random.Generator, behaviour: str, direction: str, radius: float, frames: int) -> Paths:
    """(T, 2): straight into the frame from beyond its edge, or the same backwards in time and direction.

    Between 5 frames and 40% of the video are spent wholly outside, the rest at constant speed inside.
    """
    axis = np.array(DIRECTIONS[direction], float)
    away = int(rng.integers(5, max(6, int(0.4 * frames))))
    steps = np.maximum(np.arange(frames) - away, 0.0)
    speed = float(np.clip(rng.uniform(45, 100 if axis[0] else 62) / max(frames - 1 - away, 1), 1.3, 4.2))
    if behaviour == "leave":
        steps, axis = steps[::-1], -axis
    extent, pan = (WIDTH, CAMERA_X) if axis[0] else (HEIGHT, CAMERA_Y)
    beyond = 1.35 * radius + pan / 2 + 1  # the tips of a star reach 1.3 radii
    edge = -beyond if axis.sum() > 0 else extent + beyond
    low, high = _bounds(radius)
    path = np.array([_pick(rng, low[0], high[0]), _pick(rng, low[1], high[1])]) * (axis == 0)
    return path + np.abs(axis) * edge + axis * speed * steps[:, None]


def sample_path(rng: np.random.Generator, behaviour: str, radius: float, frames: int, direction: str = "") -> Path:
    """A path of `behaviour` for an object of `radius` pixels; `direction` is drawn (two thirds level) when not given."""
    if direction not in DIRECTIONS:
        direction = str(rng.choice(["left", "right", "up", "down"], p=[0.34, 0.34, 0.16, 0.16]))
    scale = np.ones(frames)
    zero = np.zeros((frames, 2))
    if behaviour == "go":
        position = straight(rng, radius, frames, direction)
    elif behaviour == "circle":
        direction, position = _circle(rng, radius, frames)
    elif behaviour in ("enter", "leave"):
        position = _outside(rng, behaviour, direction, radius, frames)
    elif behaviour == "grow":
        scale = np.linspace(1, rng.uniform(1.8, 2.1), frames)
        position = _along(rng, radius * 2.1, zero)
    elif behaviour == "shrink":
        scale = np.linspace(1, rng.uniform(0.45, 0.55), frames)
        position = _along(rng, radius, zero)
    elif behaviour == "still":
        position = _along(rng, radius, zero)
    else:
        position = _two_legs(rng, behaviour, direction, radius, frames)
    return Path(behaviour, direction, position, scale)


def follow(leader: Path, gap: float) -> Path:
    """The path of an object that keeps `gap` pixels behind a leader going straight."""
    back = np.array(DIRECTIONS[leader.direction]) * gap
    return Path("chase", leader.direction, leader.position - back, leader.scale)
