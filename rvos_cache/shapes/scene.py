"""The scene of one video: objects with appearance, path and depth, a camera, sometimes a post that hides objects behind it.

Letters: T frames, A objects. Every scene has two objects of the same appearance that move differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_cache.shapes.motion import (
    BEHAVIOURS,
    CAMERA_X,
    CAMERA_Y,
    HEIGHT,
    MIRRORS,
    WIDTH,
    Path,
    follow,
    sample_legs,
    sample_path,
    straight,
)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "green": (40, 175, 60),
    "blue": (45, 85, 225),
    "yellow": (240, 220, 50),
    "purple": (155, 50, 200),
    "orange": (245, 135, 25),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
RADII = {"small": 9.5, "big": 15.0}


@dataclass(frozen=True)
class Appearance:
    """What a single frame shows of an object."""

    colour: str
    shape: str
    size: str


@dataclass(frozen=True)
class Thing:
    """An object. leader: index of the object that it follows, or -1."""

    appearance: Appearance
    path: Path
    leader: int = -1

    @property
    def radius(self) -> float:
        """Pixels from the centre to the outline, at scale 1."""
        return RADII[self.appearance.size]


@dataclass(frozen=True)
class Post:
    """A vertical bar of the scene in front of all objects: centre and width in world pixels."""

    x: float
    width: float


@dataclass(frozen=True)
class Scene:
    """things: A objects, the front one first; camera: (T, 2) world position of the screen's origin."""

    things: tuple[Thing, ...]
    camera: NDArray[np.float64]
    post: Post | None

    @property
    def frames(self) -> int:
        """T."""
        return len(self.camera)

    def screen(self, a: int) -> NDArray[np.float64]:
        """Return the centre of object a on the screen, (T, 2) x y in pixels."""
        return self.things[a].path.position - self.camera


def _camera(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Return a pan (T, 2) at constant speed, centred on the origin, of at most CAMERA_X by CAMERA_Y pixels."""
    total = np.array([rng.uniform(3, CAMERA_X) * rng.choice([-1, 1]), rng.uniform(-CAMERA_Y, CAMERA_Y)])
    u = np.linspace(-0.5, 0.5, frames)[:, None]
    return total * u


def _free(path: Path, radius: float, placed: list[Thing], post: Post | None, behind: bool) -> bool:
    """Return whether an object on `path` and the ones already placed are visible long enough to be described.

    Discs that overlap by a third count as hidden, which is allowed for a quarter of the frames of each pair. Only the object
    that passes `behind` the post may start or end near it; others may be near it for at most 45% of the frames.
    """
    position = path.position
    for other in placed:
        reach = 0.75 * (radius * path.scale + other.radius * other.path.scale)
        if (np.linalg.norm(position - other.path.position, axis=1) < reach).mean() > 0.25:
            return False
    if post is None or behind:
        return True
    near = np.abs(position[:, 0] - post.x) < post.width / 2 + 0.6 * radius
    return not near[0] and not near[-1] and bool(near.mean() <= 0.45)


def _place(
    rng: np.random.Generator,
    behaviour: str,
    legs: tuple[str, ...] | None,
    appearance: Appearance,
    frames: int,
    placed: list[Thing],
    post: Post | None,
) -> bool:
    """Add one object of `behaviour` to `placed`. Return False if 40 attempts found no space for it."""
    for _ in range(40):
        path = sample_path(rng, behaviour, RADII[appearance.size], frames, legs)
        if _free(path, RADII[appearance.size], placed, post, False):
            placed.append(Thing(appearance, path))
            return True
    return False


def _passer(rng: np.random.Generator, appearance: Appearance, frames: int) -> tuple[Thing, Post]:
    """Return an object that goes horizontally behind a post and is entirely hidden for five frames or more, and the post."""
    direction = str(rng.choice(["left", "right"]))
    for _ in range(100):
        path = Path("go", (direction,), straight(rng, RADII[appearance.size], frames, direction), np.ones(frames))
        x = path.position[:, 0]
        width = 2 * RADII[appearance.size] + 6.5 * abs(x[1] - x[0])
        if np.ptp(x) > width + 2 * RADII[appearance.size] + 14:
            break
    return Thing(appearance, path), Post(float(x.mean() + rng.uniform(-4, 4)), float(min(width, 46)))


def _chasers(
    rng: np.random.Generator, appearances: list[Appearance], frames: int, placed: list[Thing], post: Post | None
) -> bool:
    """Add a leader and its follower on horizontal paths. Return False if there is no space."""
    reach = RADII[appearances[0].size] + RADII[appearances[1].size]
    for _ in range(40):
        gap = reach + rng.uniform(5, 10)
        direction = str(rng.choice(["left", "right"]))
        leader = sample_path(rng, "go", max(RADII[k.size] for k in appearances), frames, (direction,))
        chaser = follow(leader, gap)
        x = chaser.position[:, 0]
        inside = x.min() > RADII[appearances[1].size] + CAMERA_X and x.max() < WIDTH - RADII[appearances[1].size] - CAMERA_X
        fits = all(_free(p, RADII[k.size], placed, post, False) for p, k in ((leader, appearances[0]), (chaser, appearances[1])))
        if inside and fits:
            placed += [Thing(appearances[0], leader), Thing(appearances[1], chaser, len(placed))]
            return True
    return False


def _crossers(
    rng: np.random.Generator, appearances: list[Appearance], frames: int, placed: list[Thing], post: Post | None
) -> bool:
    """Add two objects that pass each other on horizontal paths. Return False if there is no space."""
    for _ in range(60):
        paths = [sample_path(rng, "go", RADII[k.size], frames, (leg,)) for k, leg in zip(appearances, ("left", "right"))]
        gap = paths[0].position - paths[1].position
        reach = RADII[appearances[0].size] + RADII[appearances[1].size]
        if gap[0, 0] < 22 or gap[-1, 0] > -22 or not 0.5 * reach < abs(gap[0, 1]) < 31:
            continue
        if all(_free(path, RADII[appearance.size], placed, post, False) for path, appearance in zip(paths, appearances)):
            placed += [Thing(appearance, path) for path, appearance in zip(paths, appearances)]
            return True
    return False


def _sample_appearances(rng: np.random.Generator, count: int) -> list[Appearance]:
    """Return `count` appearances. The first two (sometimes three) are equal; others often share a colour or a shape."""
    size = str(rng.choice(["small", "big"], p=[0.7, 0.3]))
    twin = Appearance(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), size)
    appearances = [twin, twin] + ([twin] if count > 3 and rng.random() < 0.3 else [])
    while len(appearances) < count:
        colour = twin.colour if rng.random() < 0.25 else str(rng.choice(list(COLOURS)))
        shape = twin.shape if rng.random() < 0.3 else str(rng.choice(SHAPES))
        # Size alone does not distinguish two appearances (a small object may grow), so colour or shape must differ.
        if all((colour, shape) != (k.colour, k.shape) for k in appearances):
            appearances.append(Appearance(colour, shape, str(rng.choice(["small", "big"], p=[0.65, 0.35]))))
    return appearances


def _behaviour(rng: np.random.Generator, appearance: Appearance, placed: list[Thing]) -> tuple[str, tuple[str, ...]]:
    """Return behaviour and legs of the next object.

    An object often has the reversed behaviour of another of its appearance, and never the same; any other object often has the
    behaviour of one that is already placed.
    """
    twins = [t.path for t in placed if t.appearance == appearance]
    taken = {(t.behaviour, t.legs) for t in twins}
    if twins and rng.random() < 0.85:
        other = twins[int(rng.integers(len(twins)))].mirrored()
        if other is not None and other not in taken:
            return other
    if not twins and placed and rng.random() < 0.35:
        model = placed[int(rng.integers(len(placed)))].path.behaviour
        if model in BEHAVIOURS:
            return model, sample_legs(rng, model)
    names = list(BEHAVIOURS if twins or placed else MIRRORS)
    weights = np.array([BEHAVIOURS[name] for name in names])
    while True:
        behaviour = str(rng.choice(names, p=weights / weights.sum()))
        legs = sample_legs(rng, behaviour)
        # Two objects of one appearance that both go straight may differ in speed only, which many sentences describe.
        if behaviour == "go" or (behaviour, legs) not in taken:
            return behaviour, legs


def sample_scene(rng: np.random.Generator, behind: bool) -> Scene:
    """Return a scene of 24 to 40 frames and 3 to 6 objects, one of them `behind` a post. Repeats until the objects fit."""
    while True:
        frames, count = int(rng.integers(24, 41)), int(rng.integers(3, 7))
        appearances = _sample_appearances(rng, count)
        placed: list[Thing] = []
        post = None
        plot = rng.random()
        if behind:
            # The object that passes behind the post is one of the equal ones, or they are two others.
            appearances = appearances if plot < 0.25 else appearances[::-1]
            thing, post = _passer(rng, appearances[0], frames)
            placed.append(thing)
        elif plot < 0.4:
            partner = int(rng.integers(1, count))
            meet = _chasers if plot < 0.22 else _crossers
            if meet(rng, [appearances[0], appearances[partner]], frames, placed, post):
                appearances = [appearances[0], appearances[partner]] + [
                    k for i, k in enumerate(appearances) if i not in (0, partner)
                ]
        for appearance in appearances[len(placed) :]:
            behaviour, legs = _behaviour(rng, appearance, placed)
            if not _place(rng, behaviour, legs, appearance, frames, placed, post):
                break
        if len(placed) < count:
            continue
        order = rng.permutation(count)
        inverse = np.argsort(order)
        things = [placed[i] for i in order]
        things = [Thing(t.appearance, t.path, int(inverse[t.leader]) if t.leader >= 0 else -1) for t in things]
        return Scene(tuple(things), _camera(rng, frames), post)


SIZE = (HEIGHT, WIDTH)
