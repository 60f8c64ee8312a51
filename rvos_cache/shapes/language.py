"""True statements about a scene, in English. A claim has one value per object: 1 true, 0 false, -1 undecided.

A claim becomes a sentence about a group of objects only if it is 1 or 0 for each of them, so that the targets of a sentence are
certain. Directions are the same on the screen and in the world. Letters: A objects, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rvos_cache.shapes.motion import DIRECTIONS, OPPOSITE
from rvos_cache.shapes.scene import Appearance, Scene

Claim = NDArray[np.int64]
"""(A,) of 1, 0 and -1."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")

TOWARDS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
PAIRS = [(first, then) for first in DIRECTIONS for then in DIRECTIONS if first != then]


def _two_ways(first: str, then: str) -> tuple[tuple[str, str], ...]:
    """Return (singular, plural) of each wording of "goes `first` and then `then`"."""
    back = "back " if then == OPPOSITE[first] else ""
    return (
        (
            f"that goes {TOWARDS[first]} and then {back}{TOWARDS[then]}",
            f"that go {TOWARDS[first]} and then {back}{TOWARDS[then]}",
        ),
        (f"moving first {TOWARDS[first]}, then {back}{TOWARDS[then]}",) * 2,
    )


PHRASES: dict[str, tuple[tuple[str, str], ...]] = {
    **{
        d: ((f"moving {w}", f"moving {w}"), (f"that moves {w}", f"that move {w}"), (f"travelling {w}", f"travelling {w}"))
        for d, w in TOWARDS.items()
    },
    **{f"{first} then {then}": _two_ways(first, then) for first, then in PAIRS},
    "still": (("that stays still", "that stay still"), ("that never moves", "that never move"), ("standing still",) * 2),
    "stop": (("that moves and then stops", "that move and then stop"), ("coming to a halt",) * 2),
    "start": (("that starts moving later", "that start moving later"), ("that waits before moving", "that wait before moving")),
    "back": (("that turns back", "that turn back"), ("that reverses its direction", "that reverse their direction")),
    "pause": (("that pauses on its way", "that pause on their way"), ("stopping for a moment before going on",) * 2),
    "speedup": (("that speeds up", "that speed up"), ("moving slowly first and then fast",) * 2),
    "slowdown": (("that slows down", "that slow down"), ("moving fast first and then slowly",) * 2),
    "swell": (("that grows and then shrinks", "that grow and then shrink"), ("getting bigger and then smaller again",) * 2),
    "dip": (("that shrinks and then grows", "that shrink and then grow"), ("getting smaller and then bigger again",) * 2),
    "corner": (("that turns a corner", "that turn a corner"), ("making a right-angled turn",) * 2),
    "clockwise": (
        ("circling clockwise",) * 2,
        ("that moves round in a clockwise circle", "that move round in clockwise circles"),
    ),
    "anticlockwise": (("circling anticlockwise",) * 2, ("going round counterclockwise",) * 2),
    "grow": (("that grows", "that grow"), ("getting bigger",) * 2),
    "shrink": (("that shrinks", "that shrink"), ("getting smaller",) * 2),
    "enter": (("that enters the scene", "that enter the scene"), ("coming into view from outside",) * 2),
    "leave": (("that leaves the scene", "that leave the scene"), ("moving out of the frame",) * 2),
    "fast": (("moving quickly",) * 2, ("that moves fast", "that move fast")),
    "slow": (("moving slowly",) * 2, ("that creeps along", "that creep along")),
    "chase": (("that follows another one closely", "that follow another one closely"), ("chasing another object",) * 2),
    "chased": (("being followed by another object",) * 2, ("being chased",) * 2),
    "behind": (
        ("passing behind the post",) * 2,
        ("that disappears behind the post and comes back", "that disappear behind the post and come back"),
    ),
    "cross": (("passing another one that goes the opposite way",) * 2, ("crossing paths with another one",) * 2),
    "fastest": (("that moves fastest", "that move fastest"), ("moving faster than the others",) * 2),
    "first_stop": (("that stops first", "that stop first"), ("coming to a halt before the others",) * 2),
    "last_stop": (("that stops last", "that stop last"),),
    "first_start": (("that starts moving first", "that start moving first"),),
    "last_start": (("that starts moving last", "that start moving last"), ("setting off after the others",) * 2),
    "first_in": (("that enters first", "that enter first"),),
    "last_in": (("that enters last", "that enter last"),),
    "first_out": (("that leaves first", "that leave first"),),
    "last_out": (("that leaves last", "that leave last"),),
}


@dataclass(frozen=True)
class Sentence:
    """One sentence. targets: object indices; claim: the name of its claim; noun: what its noun phrase names, in the singular.

    kind: "motion" (the targets differ from others of their appearance), "static" (appearance only), "mixed" (appearance is
    enough), "none" (no target). rival: whether another object that the noun names does what a target does in reverse order.
    """

    text: str
    targets: tuple[int, ...]
    kind: str
    claim: str
    noun: str
    rival: bool = False


def _directions(scene: Scene, visible: NDArray[np.float64]) -> dict[str, Claim]:
    """Return the four directions: net travel of 30 pixels or more, nearly straight, while the object is visible.

    For an object that goes in two directions both are undecided and the other two false.
    """
    out = {}
    for name, axis in DIRECTIONS.items():
        claim = np.full(len(scene.things), -1)
        for a, thing in enumerate(scene.things):
            frames_visible = np.flatnonzero(visible[a] > 0.3)
            if thing.path.behaviour in ("still", "circle"):
                claim[a] = 0
            elif len(thing.path.legs) > 1:
                claim[a] = -1 if name in thing.path.legs else 0
            elif len(frames_visible) and thing.path.legs:
                nets = [p[frames_visible[-1]] - p[frames_visible[0]] for p in (thing.path.position, scene.screen(a))]
                along = [float(n @ np.array(axis)) for n in nets]
                aside = [float(abs(n @ np.array(axis[::-1]))) for n in nets]
                if all(x >= 30 and y <= 0.5 * x for x, y in zip(along, aside)):
                    claim[a] = 1
                elif max(along) <= 14:
                    claim[a] = 0
        out[name] = claim
    return out


def _two_legged(scene: Scene, clear: NDArray[np.bool_]) -> dict[str, Claim]:
    """Return the pairs of directions that occur, and their reverses; undecided for a circle, which has all directions."""
    legs = [t.path.legs for t in scene.things]
    occurring = {pair for pair in legs if len(pair) == 2}
    out = {}
    for first, then in PAIRS:
        if (first, then) in occurring or (then, first) in occurring:
            matches = [int(pair == (first, then)) for pair in legs]
            unsure = [t.path.behaviour == "circle" or (len(t.path.legs) == 2 and not c) for t, c in zip(scene.things, clear)]
            out[f"{first} then {then}"] = np.where(unsure, -1, matches)
    return out


def _ordered(claim: Claim, frame: NDArray[np.float64], first: bool) -> Claim:
    """Return 1 for the first (last) object with `claim`, if two or more have it, five frames or more apart; else undecided."""
    has = np.flatnonzero(claim == 1)
    out = np.where(claim == -1, -1, 0)
    if len(has) < 2:
        return np.full(len(claim), -1)
    order = has[np.argsort(frame[has])][:: 1 if first else -1]
    out[order[0]] = 1
    return out if abs(frame[order[0]] - frame[order[1]]) >= 5 else np.full(len(claim), -1)


UNDECIDED: dict[str, tuple[str, ...]] = {
    "still": ("grow", "shrink", "swell", "dip"),
    "stop": ("pause",),
    "start": ("pause",),
    "pause": (),
    "speedup": ("start", "pause"),
    "slowdown": ("stop", "pause"),
    "back": (),
    "corner": (),
    "grow": ("swell", "dip"),
    "shrink": ("swell", "dip"),
    "swell": (),
    "dip": (),
}
"""Claim about one behaviour -> the behaviours for which it is undecided."""


def claims(scene: Scene, visible: NDArray[np.float64]) -> dict[str, Claim]:
    """Return all claims (A,) by name. visible: (A, T), the share of each object that is visible."""
    things = scene.things
    kinds = np.array([t.path.behaviour for t in things])
    out = _directions(scene, visible)
    change = np.array([t.path.change for t in things])
    clear = np.array([c < 0 or visible[a, max(0, c - 3) : c + 4].mean() > 0.5 for a, c in enumerate(change)])
    out.update(_two_legged(scene, clear))
    for name, undecided_for in UNDECIDED.items():
        claim = (kinds == name).astype(int)
        claim[np.isin(kinds, undecided_for) | ((claim == 1) & ~clear)] = -1
        out[name] = claim
    for name in ("clockwise", "anticlockwise"):
        out[name] = np.array([int(t.path.behaviour == "circle" and t.path.legs == (name,)) for t in things])
    for name, edge in (("enter", 0), ("leave", -1)):
        out[name] = np.where(kinds == name, 1, np.where(visible[:, edge] > 0.4, 0, -1))
    step = np.array([np.linalg.norm(np.diff(t.path.position, axis=0), axis=1) for t in things])
    # The slowest and the fastest pace of an object while it moves; they differ if it speeds up or slows down.
    pace = [np.percentile(s[s > 0.05], [15, 85]) if (s > 0.05).any() else np.zeros(2) for s in step]
    low, high = np.array(pace).T
    out["fast"] = np.where(low >= 2.9, 1, np.where(high <= 1.9, 0, -1))
    out["slow"] = np.where((low > 0) & (high <= 1.9), 1, np.where((low >= 2.9) | (kinds == "still"), 0, -1))
    leaders = {t.leader for t in things if t.leader >= 0}
    # Without a designed chase two objects may go the same way by chance, so the claim is undecided.
    pair = np.array([(t.leader >= 0) - 2 * (not leaders) for t in things])
    others_level = (out["left"] == 1).sum() + (out["right"] == 1).sum() > 2
    undecided = not leaders or others_level
    out["chase"] = np.full(len(things), -1) if undecided else np.maximum(pair, 0)
    out["chased"] = np.full(len(things), -1) if undecided else np.array([int(a in leaders) for a in range(len(things))])
    out["behind"] = _behind(scene, visible)
    out["cross"] = _crossing(scene, out)
    best = int(np.argmax(low))
    rest = np.delete(high, best)
    out["fastest"] = (np.arange(len(things)) == best).astype(int) if low[best] >= 1.5 * rest.max() else np.full(len(things), -1)
    is_visible = visible > 0.3
    start, end = is_visible.argmax(1).astype(float), (is_visible.shape[1] - is_visible[:, ::-1].argmax(1)).astype(float)
    for name, source, frame in (
        ("in", "enter", start),
        ("out", "leave", end),
        ("stop", "stop", change),
        ("start", "start", change),
    ):
        out[f"first_{name}"] = _ordered(out[source], frame, True)
        out[f"last_{name}"] = _ordered(out[source], frame, False)
    return out


def _behind(scene: Scene, visible: NDArray[np.float64]) -> Claim:
    """Return 1: hidden for three frames or more while it passes from one side of the post to the other; 0: never near it."""
    if scene.post is None:
        return np.full(len(scene.things), -1)
    out = []
    for a, thing in enumerate(scene.things):
        x, half = thing.path.position[:, 0] - scene.post.x, scene.post.width / 2
        through = x[0] * x[-1] < 0 and min(abs(x[0]), abs(x[-1])) > half and (visible[a, np.abs(x) < half] < 0.02).sum() >= 3
        out.append(1 if through else 0 if np.abs(x).min() > half + 0.6 * thing.radius else -1)
    return np.array(out)


def _crossing(scene: Scene, directions: dict[str, Claim]) -> Claim:
    """Return 1 for two objects that go horizontally, exchange sides at similar heights, and are the only such pair."""
    level = [a for a in range(len(scene.things)) if directions["left"][a] == 1 or directions["right"][a] == 1]
    if len(level) != 2 or directions["left"][level].sum() != 1 or (directions["left"] == -1).any():
        return np.full(len(scene.things), -1)
    gap = scene.things[level[0]].path.position - scene.things[level[1]].path.position
    if gap[0, 0] * gap[-1, 0] >= 0 or min(abs(gap[0, 0]), abs(gap[-1, 0])) < 20 or np.abs(gap[:, 1]).max() > 32:
        return np.full(len(scene.things), -1)
    return np.array([int(a in level) for a in range(len(scene.things))])


def _groups(appearances: list[Appearance]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (singular, plural, objects) of every noun that names objects by their appearance; the first noun names all."""
    out = [("object", "objects", tuple(range(len(appearances))))]
    for appearance in dict.fromkeys(appearances):
        for noun, test in (
            (appearance.shape, lambda k, own=appearance: k.shape == own.shape),
            (f"{appearance.colour} object", lambda k, own=appearance: k.colour == own.colour),
            (
                f"{appearance.colour} {appearance.shape}",
                lambda k, own=appearance: (k.colour, k.shape) == (own.colour, own.shape),
            ),
        ):
            entry = (noun, noun + ("es" if noun.endswith("ss") else "s"), tuple(a for a, k in enumerate(appearances) if test(k)))
            if entry not in out:
                out.append(entry)
    return out


def _noun_phrase(rng: np.random.Generator, noun: str, plural: str, phrase: tuple[str, str], count: int) -> str:
    """Return a noun phrase for `count` targets. phrase: (singular, plural) of what they do."""
    if count > 1:
        if noun == "object" and rng.random() < 0.4:
            return f"everything {phrase[0]}"
        return f"{rng.choice(['the ' + NUMBERS[count], 'all', 'the'])} {plural} {phrase[1]}".strip()
    if noun == "object":
        noun = str(rng.choice(["object", "one", "shape", "thing"]))
    elif noun.endswith(" object") and rng.random() < 0.5:
        noun = noun.replace("object", "one")
    return f"the {noun} {phrase[0]}".strip()


def _pool(rng: np.random.Generator, scene: Scene, visible: NDArray[np.float64]) -> list[Sentence]:
    """Return every possible sentence, in one wording each."""
    pool = []
    all_claims = claims(scene, visible)
    paths = [t.path for t in scene.things]
    for noun, plural, group in _groups([t.appearance for t in scene.things]):
        if noun != "object":
            pool.append(Sentence(_noun_phrase(rng, noun, plural, ("", ""), len(group)), group, "static", "looks", noun))
        for name, claim in all_claims.items():
            values = claim[list(group)]
            # An order or a superlative refers to the whole scene; in a smaller group it would need its own comparison.
            if (values < 0).any() or (noun != "object" and name.startswith(("first", "last", "fastest"))):
                continue
            targets = tuple(a for a in group if claim[a] == 1)
            kind = "none" if not targets else "motion" if len(targets) < len(group) else "mixed"
            if kind == "mixed" and noun == "object":
                continue
            phrase = PHRASES[name][int(rng.integers(len(PHRASES[name])))]
            others = {(paths[b].behaviour, paths[b].legs) for b in group if b not in targets}
            rival = any(paths[a].mirrored() in others for a in targets)
            text = _noun_phrase(rng, noun, plural, phrase, len(targets))
            pool.append(Sentence(text, targets, kind, name, noun, rival))
    return pool


def _family(claim: str) -> str:
    """Return the family of a claim: those that differ only in a direction or a rank are one family."""
    return (
        "direction"
        if claim in DIRECTIONS
        else "then"
        if " then " in claim
        else claim.removeprefix("first_").removeprefix("last_")
    )


def sentences(rng: np.random.Generator, scene: Scene, visible: NDArray[np.float64]) -> list[Sentence]:
    """Return up to 17 different sentences, as many as in MeViS: 9 to 11 "motion", three "static", two "mixed", one "none"."""
    pool = _pool(rng, scene, visible)
    kinds = ["motion"] * int(rng.integers(9, 12)) + ["static"] * 3 + ["mixed"] * 2 + ["none"]
    chosen: list[Sentence] = []
    for i, kind in enumerate(kinds):
        remaining = [s for s in pool if s.kind == kind and all(s.text != c.text for c in chosen)]
        several = [s for s in remaining if len(s.targets) > 1]
        if several and (i % 2 == 0 or (kind == "static" and rng.random() < 0.5)):
            remaining = several
        if remaining:
            # Sample a family first, so that a family of many sentences is not more frequent. Prefer sentences with a rival.
            families = sorted({_family(s.claim) for s in remaining})
            used = [_family(c.claim) for c in chosen]
            rivals = {_family(s.claim) for s in remaining if s.rival}
            weight = np.array([0.2 ** used.count(f) * (3 if f in rivals else 1) for f in families])
            family = families[int(rng.choice(len(families), p=weight / weight.sum()))]
            remaining = [s for s in remaining if _family(s.claim) == family]
            remaining = [s for s in remaining if s.rival] or remaining
            chosen.append(remaining[int(rng.integers(len(remaining)))])
    return [chosen[i] for i in rng.permutation(len(chosen))]
