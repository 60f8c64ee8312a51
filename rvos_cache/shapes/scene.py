"""What one video shows: objects with looks, paths and depths, a camera, sometimes a post that hides what passes it.

Letters: T frames, A objects. Every scene has two objects of the very same look that move differently.
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
class Look:
    """Everything that a single frame can tell about an object ."""

    colour: str
    shape: str
    size: str


@dataclass(frozen=True)
class Thing:
    """An object: its look, its path, its group of chase partners (`leader`: index of the object it follows, or -1)."""

    look: Look
    path: Path
    leader: int = -1

    @property
    def radius(self) -> float:
        """Pixels from the centre to the outline, at scale 1."""
        return RADII[self.look.size]


@dataclass(frozen=True)
class Post:
    """A vertical bar of the scene in front of all objects: centre and width in world pixels."""

    x: float
    width: float


@dataclass(frozen=True)
class Scene:
    """things: A objects, front first; camera: (T, 2) world position of the screen's origin; post: or None."""

    things: tuple[Thing, ...]
    camera: NDArray[np.float64]
    post: Post | None

    @property
    def frames(self) -> int:
        """T."""
        return len(self.camera)

    def screen(self, a: int) -> NDArray[np.float64]:
        """Centre of object a on the screen, (T, 2) x y in pixels."""
        return self.things[a].path.position - self.camera


def _camera(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """A pan at nearly constant speed, centred on the origin; total at most CAMERA_X by CAMERA_Y pixels."""
    total = np.array([rng.uniform(3, CAMERA_X) * rng.choice([-1, 1]), rng.uniform(-CAMERA_Y, CAMERA_Y)])
    u = np.linspace(-0.5, 0.5, frames)[:, None]
    return total * u


def _free(path: Path, radius: float, placed: list[Thing], post: Post | None, behind: bool) -> bool:
    """Whether an object on `path` and the ones already placed stay visible long enough to be described.

    Discs that overlap by a third count as hidden: at most a quarter of the frames per pair. Only the object that
    passes `behind` the post, and those that cross it, may be behind it, for at most 45% of the frames.
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
    look: Look,
    frames: int,
    placed: list[Thing],
    post: Post | None,
) -> bool:
    """Add one object of `behaviour` to `placed` where there is room for it; False when 40 tries found none."""
    for _ in range(40):
        path = sample_path(rng, behaviour, RADII[look.size], frames, legs)
        if _free(path, RADII[look.size], placed, post, False):
            placed.append(Thing(look, path))
            return True
    return False


def _passer(rng: np.random.Generator, look: Look, frames: int) -> tuple[Thing, Post]:
    """An object that goes level behind a post and is wholly hidden by it for five frames or more."""
    direction = str(rng.choice(["left", "right"]))
    for _ in range(100):
        path = Path("go", (direction,), straight(rng, RADII[look.size], frames, direction), np.ones(frames))
        x = path.position[:, 0]
        width = 2 * RADII[look.size] + 6.5 * abs(x[1] - x[0])
        if np.ptp(x) > width + 2 * RADII[look.size] + 14:
            break
    return Thing(look, path), Post(float(x.mean() + rng.uniform(-4, 4)), float(min(width, 46)))


def _chasers(rng: np.random.Generator, looks: list[Look], frames: int, placed: list[Thing], post: Post | None) -> bool:
    """Add a leader and its follower, both level; False when there is no room."""
    reach = RADII[looks[0].size] + RADII[looks[1].size]
    for _ in range(40):
        gap = reach + rng.uniform(5, 10)
        direction = str(rng.choice(["left", "right"]))
        leader = sample_path(rng, "go", max(RADII[k.size] for k in looks), frames, (direction,))
        chaser = follow(leader, gap)
        x = chaser.position[:, 0]
        inside = x.min() > RADII[looks[1].size] + CAMERA_X and x.max() < WIDTH - RADII[looks[1].size] - CAMERA_X
        fits = all(_free(p, RADII[k.size], placed, post, False) for p, k in ((leader, looks[0]), (chaser, looks[1])))
        if inside and fits:
            placed += [Thing(looks[0], leader), Thing(looks[1], chaser, len(placed))]
            return True
    return False


def _crossers(rng: np.random.Generator, looks: list[Look], frames: int, placed: list[Thing], post: Post | None) -> bool:
    """Add two objects that go level in opposite directions and pass each other; False when there is no room."""
    for _ in range(60):
        paths = [sample_path(rng, "go", RADII[k.size], frames, (leg,)) for k, leg in zip(looks, ("left", "right"))]
        gap = paths[0].position - paths[1].position
        reach = RADII[looks[0].size] + RADII[looks[1].size]
        if gap[0, 0] < 22 or gap[-1, 0] > -22 or not 0.5 * reach < abs(gap[0, 1]) < 31:
            continue
        if all(_free(path, RADII[look.size], placed, post, False) for path, look in zip(paths, looks)):
            placed += [Thing(look, path) for path, look in zip(paths, looks)]
            return True
    return False


def _looks(rng: np.random.Generator, count: int) -> list[Look]:
    """`count` looks of which the first two (sometimes three) are the same; others often share a colour or a shape."""
    size = str(rng.choice(["small", "big"], p=[0.7, 0.3]))
    twin = Look(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), size)
    looks = [twin, twin] + ([twin] if count > 3 and rng.random() < 0.3 else [])
    while len(looks) < count:
        colour = twin.colour if rng.random() < 0.25 else str(rng.choice(list(COLOURS)))
        shape = twin.shape if rng.random() < 0.3 else str(rng.choice(SHAPES))
        # The size alone never tells two looks apart for certain (a small one may grow), so colour or shape must differ.
        if all((colour, shape) != (k.colour, k.shape) for k in looks):
            looks.append(Look(colour, shape, str(rng.choice(["small", "big"], p=[0.65, 0.35]))))
    return looks


def _behaviour(rng: np.random.Generator, look: Look, placed: list[Thing]) -> tuple[str, tuple[str, ...]]:
    """Behaviour and legs of the next object.

    A twin often does what an object of its look does in the other order, and never the same; any other object often
    does what another one does already.
    """
    twins = [t.path for t in placed if t.look == look]
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
        # Two twins that both go straight may differ in speed alone, which is what many sentences are about.
        if behaviour == "go" or (behaviour, legs) not in taken:
            return behaviour, legs


def sample_scene(rng: np.random.Generator, behind: bool) -> Scene:
    """One scene: 24–40 frames, 3–6 objects, one of them going `behind` a post. Layouts that do not fit are drawn again."""
    while True:
        frames, count = int(rng.integers(24, 41)), int(rng.integers(3, 7))
        looks = _looks(rng, count)
        placed: list[Thing] = []
        post = None
        plot = rng.random()
        if behind:
            # the one that passes behind the post has a twin, or the twins are two others
            looks = looks if plot < 0.25 else looks[::-1]
            thing, post = _passer(rng, looks[0], frames)
            placed.append(thing)
        elif plot < 0.4:
            partner = int(rng.integers(1, count))
            meet = _chasers if plot < 0.22 else _crossers
            if meet(rng, [looks[0], looks[partner]], frames, placed, post):
                looks = [looks[0], looks[partner]] + [k for i, k in enumerate(looks) if i not in (0, partner)]
        for look in looks[len(placed) :]:
            behaviour, legs = _behaviour(rng, look, placed)
            if not _place(rng, behaviour, legs, look, frames, placed, post):
                break
        if len(placed) < count:
            continue
        order = rng.permutation(count)
        inverse = np.argsort(order)
        things = [placed[i] for i in order]
        things = [Thing(t.look, t.path, int(inverse[t.leader]) if t.leader >= 0 else -1) for t in things]
        return Scene(tuple(things), _camera(rng, frames), post)


SIZE = (HEIGHT, WIDTH)
