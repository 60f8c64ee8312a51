"""Small frames: flat shapes followed through occlusions by their colour class, outline and motion.

Letters: T frames, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.trackers.flow import flat
from rvos_cache.trackers.flow.motion import Motion, Reader, apply
from rvos_cache.trackers.flow.settings import FlowSettings

PAD = 48
"""Pixels around the frame in which an object that has left may be thought of."""
LOST = 0.15
"""Share of the outline that must show for an object to count as visible."""
FOUND = 0.5
"""Share that must show for a lost object to be taken up again."""


@dataclass(eq=False)
class SmallTrack:
    """One object. masks bool (T, h, w); shown float (T,), share of its outline that shows; kind: its colour class."""

    frame: int
    region: NDArray[np.bool_]
    kind: int
    score: float
    masks: NDArray[np.bool_]
    shown: NDArray[np.float64]


@dataclass(eq=False)
class State:
    """Where a track stands in one direction of time: outline uint8 (a, b), its corner and velocity x y in pixels
    (velocity with the background held still), for how many frames it has been lost,
    and for how many its area has hardly changed."""

    outline: NDArray[np.uint8]
    corner: NDArray[np.float64]
    velocity: NDArray[np.float64]
    gap: int = 0
    steady: int = 0
    kernel: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.set_outline(self.outline)

    def set_outline(self, outline: NDArray[np.uint8]) -> None:
        """The kernel rewards pixels of the class under the outline and punishes them in a thin ring around it."""
        self.outline = outline
        wide = np.pad(outline, 2)
        ring = cv2.dilate(wide, np.ones((5, 5), np.uint8)) - wide
        self.kernel = wide.astype(np.float32) - 0.4 * ring.astype(np.float32)


class SmallVideo:
    """One video: its colour classes per frame and the tracks found so far."""

    def __init__(self, read: Reader, frames: int, motion: Motion, settings: FlowSettings) -> None:
        self.frames, self.motion, self.settings = frames, motion, settings
        pictures = [read(t) for t in range(frames)]
        self.size = pictures[0].shape[:2]
        self.lab = [flat.lab_of(p) for p in pictures]
        self.keys = key_frames(frames, settings.small_key_every)
        spread = sorted({round(i * (frames - 1) / 4) for i in range(5)})
        self.colours = flat.colour_classes([r for t in spread for r in flat.find_colours(self.lab[t], t)])
        self.kinds = [flat.classify(lab, self.colours) for lab in self.lab]
        count = len(self.colours)
        self.regions = {t: flat.prompts(self.kinds[t], self.lab[t], count, t) for t in self.keys}
        self.pieces: dict[tuple[int, int], NDArray[np.int32]] = {}
        self.tracks: list[SmallTrack] = []

    def run(self) -> list[SmallTrack]:
        """All tracks, best first.

        Colour by colour, since tracks of different colours do not compete. The key frames that show a colour in the most
        separate pieces come first, so that two objects of one look are not taken for one where they touch.
        """
        for kind in range(len(self.colours)):
            mine = {t: [r for r in self.regions[t] if self._kind(r) == kind] for t in self.keys}
            for t in sorted(self.keys, key=lambda t: -len(mine[t])):
                fresh = [self._start(r, kind) for r in mine[t] if not self._covered(r, kind)]
                self.tracks += fresh
                for direction in (1, -1):
                    self._propagate(fresh, t, direction)
            self.tracks = [k for k in self.tracks if (k.shown > 0).sum() >= min(3, self.frames)]
        self.tracks = distinct(link(self.tracks, self.motion), self.settings.duplicate_iou)
        self.tracks.sort(key=lambda k: -(k.score + (k.shown > 0).mean()))
        return self.tracks[: min(self.settings.small_max_tracks, self.settings.max_tracks)]

    def _kind(self, region: flat.Region) -> int:
        return int(np.argmin(np.linalg.norm(self.colours - region.colour, axis=1)))

    def _covered(self, region: flat.Region, kind: int) -> bool:
        """Whether the tracks of its colour already hold half of the region."""
        held = np.zeros(self.size, bool)
        for track in self.tracks:
            if track.kind == kind:
                held |= track.masks[region.frame]
        return bool((held & region.mask).sum() > 0.5 * region.mask.sum())

    def _start(self, region: flat.Region, kind: int) -> SmallTrack:
        masks = np.zeros((self.frames, *self.size), bool)
        shown = np.zeros(self.frames)
        core = region.mask & (self.kinds[region.frame] == kind)
        start = core if core.sum() > 0.5 * region.mask.sum() else region.mask
        masks[region.frame] = flat.fill_rim(start, self.lab[region.frame], self.colours[kind])
        shown[region.frame] = 1
        return SmallTrack(region.frame, start, kind, region.score, masks, shown)

    def _propagate(self, fresh: list[SmallTrack], start: int, direction: int) -> None:
        states = []
        for track in fresh:
            x, y, w, h = cv2.boundingRect(track.region.astype(np.uint8))
            outline = track.region[y : y + h, x : x + w].astype(np.uint8)
            states.append(State(outline, np.array([x, y], float), self._first_velocity(track, start, direction)))
        t = start + direction
        while 0 <= t < self.frames:
            # Tracks that showed most in the frame before choose their pixels first; lost ones last.
            order = sorted(range(len(fresh)), key=lambda i: (states[i].gap > 0, -fresh[i].shown[t - direction], i))
            for i in order:
                self._step(fresh[i], states[i], t, direction)
            t += direction

    def _first_velocity(self, track: SmallTrack, t: int, direction: int) -> NDArray[np.float64]:
        """Median flow in the region, the camera's taken off."""
        if not 0 <= t + direction < self.frames:
            return np.zeros(2)
        ys, xs = np.nonzero(track.region)
        moved = np.median(self.motion.flow(t, direction)[ys, xs].astype(float), axis=0)
        centre = np.array([[xs.mean(), ys.mean()]])
        return np.asarray(moved - (apply(self.motion.background(t, direction), centre) - centre)[0], np.float64)

    def _claimed(self, track: SmallTrack, t: int) -> NDArray[np.bool_]:
        """Pixels of frame t that other tracks of the same colour hold."""
        out = np.zeros(self.size, bool)
        for other in self.tracks:
            if other is not track and other.kind == track.kind:
                out |= other.masks[t]
        return out

    def _step(self, track: SmallTrack, state: State, t: int, direction: int) -> None:
        """One track one frame on."""
        background = self.motion.background(t - direction, direction)
        middle = state.corner + np.array(state.outline.shape[::-1]) / 2
        carried = apply(background, middle[None])[0] - middle
        guess = state.corner + carried + state.velocity
        kinds = self.kinds[t]
        claimed = self._claimed(track, t)
        value = np.where(kinds == track.kind, 1.0, np.where(kinds >= 0, -0.1, -1.0)).astype(np.float32)
        value[claimed] = -0.5
        twins = self._claimed(track, t - direction)
        crowded = bool(twins.any()) and self._crowded(track, twins, t, direction)
        corner = self._align(state, value, guess, crowded)
        mask, share, whole = self._cut(track, state, kinds, claimed, corner, t, direction, crowded)
        enough = LOST if state.gap == 0 else FOUND
        if share < enough:
            state.gap += 1
            height, width = self.size
            low = -np.array(state.outline.shape[::-1], float)
            state.corner = np.clip(guess, low - 8, [width + 8, height + 8])
            return
        track.masks[t] = flat.fill_rim(mask, self.lab[t], self.colours[track.kind]) & ~claimed
        track.shown[t] = min(share, 1.0)
        gain = 0.1 if crowded else 0.5 if share > 0.8 else 0.0
        if state.gap == 0:
            state.velocity += gain * (corner - (state.corner + carried) - state.velocity)
        state.gap = 0
        state.corner = corner
        if whole and 0.92 < share < 1.08:
            state.steady += 1
        if share > 0.85 and whole and not crowded:
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            state.set_outline(mask[y : y + h, x : x + w].astype(np.uint8))
            state.corner = np.array([x, y], float)

    def _crowded(self, track: SmallTrack, twins: NDArray[np.bool_], t: int, direction: int) -> bool:
        """Whether another track of the same colour was within three pixels of this one a frame ago."""
        near = cv2.dilate(track.masks[t - direction].astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
        return bool((near & twins).any())

    def _align(self, state: State, value: NDArray[np.float32], guess: NDArray[np.float64], crowded: bool) -> NDArray[np.float64]:
        """The corner near `guess` at which the outline fits the frame's class values best."""
        speed = float(np.abs(state.velocity).max())
        reach = round(min(4 + speed, 10)) if state.gap == 0 else round(min(5 + 2.0 * state.gap, 16))
        padded = np.pad(value, PAD)
        a, b = state.outline.shape
        x, y = round(float(guess[0])) + PAD - 2, round(float(guess[1])) + PAD - 2
        y0, x0 = max(0, y - reach), max(0, x - reach)
        window = padded[y0 : y + a + 4 + reach, x0 : x + b + 4 + reach]
        if window.shape[0] < a + 4 or window.shape[1] < b + 4:
            return guess
        fit = cv2.matchTemplate(window, state.kernel, cv2.TM_CCORR)
        ys, xs = np.mgrid[0 : fit.shape[0], 0 : fit.shape[1]]
        away = (ys + y0 - PAD + 2 - guess[1]) ** 2 + (xs + x0 - PAD + 2 - guess[0]) ** 2
        weight = 1.0 if crowded else 0.3 if state.gap == 0 else 0.5
        fit = fit - weight * state.outline.sum() * away / (reach + 1) ** 2
        best = np.unravel_index(int(np.argmax(fit)), fit.shape)
        return np.array([best[1] + x0 - PAD + 2, best[0] + y0 - PAD + 2], float)

    def _cut(
        self,
        track: SmallTrack,
        state: State,
        kinds: NDArray[np.int8],
        claimed: NDArray[np.bool_],
        corner: NDArray[np.float64],
        t: int,
        direction: int,
        crowded: bool,
    ) -> tuple[NDArray[np.bool_], float, bool]:
        """The track's pixels bool (h, w) for its outline at `corner`, the share of the outline they fill, and whether
        they are whole pieces of the colour: then they may become the next outline."""
        h, w = self.size
        a, b = state.outline.shape
        x, y = int(corner[0]), int(corner[1])
        placed = np.zeros((h + 2 * PAD, w + 2 * PAD), np.uint8)
        y0, x0 = np.clip(y + PAD, 0, h + 2 * PAD - 1), np.clip(x + PAD, 0, w + 2 * PAD - 1)
        part = placed[y0 : y0 + a, x0 : x0 + b]
        part[:] = state.outline[: part.shape[0], : part.shape[1]]
        inside = placed[PAD : PAD + h, PAD : PAD + w]
        near = cv2.dilate(inside, np.ones((3, 3), np.uint8)).astype(bool)
        mine = (kinds == track.kind) & ~claimed
        pieces = self._pieces(t, track.kind)
        area = int(state.outline.sum())
        out = np.zeros((h, w), bool)
        clean = True
        for piece in np.unique(pieces[(inside > 0) & mine]):
            whole = (pieces == piece) & mine
            size = int(whole.sum())
            covered = int((whole & near).sum())
            if covered < 5:
                continue
            touches = whole[0].any() or whole[-1].any() or whole[:, 0].any() or whole[:, -1].any()
            # Until its size has been steady for some frames it may be coming out from behind something and grow fast.
            # Afterwards, or where another piece of the colour was near a frame ago, a much larger piece is two objects.
            free = touches or state.steady < 4 or size <= 1.15 * area
            lone = free and not (size > 1.15 * area and self._neighbour(track, whole, t, direction))
            limit = 1.05 if crowded else 2.2 if lone else 1.15
            fits = size < limit * area + 6 and covered > (0.3 if touches else 0.5) * size
            clean &= fits
            out |= whole if fits else whole & near
        return out, float(out.sum()) / max(area, 1), clean

    def _neighbour(self, track: SmallTrack, piece: NDArray[np.bool_], t: int, direction: int) -> bool:
        """Whether a frame ago another piece of the colour than the track's own was within four pixels of `piece`."""
        before = self._pieces(t - direction, track.kind)
        own = np.unique(before[track.masks[t - direction]])
        near = cv2.dilate(piece.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        found = before[near]
        return int(((found > 0) & ~np.isin(found, own)).sum()) > 15

    def _pieces(self, t: int, kind: int) -> NDArray[np.int32]:
        """Connected pieces (h, w) of a colour class in frame t, 0 elsewhere."""
        if (t, kind) not in self.pieces:
            found = cv2.connectedComponents((self.kinds[t] == kind).astype(np.uint8), connectivity=4)[1]
            self.pieces[t, kind] = found
        return self.pieces[t, kind]


def key_frames(frames: int, every: int) -> list[int]:
    """The middle frame first, then ever further from it, both ends last."""
    middle = frames // 2
    found = {*range(middle, frames, every), *range(middle, -1, -every), 0, frames - 1}
    return sorted(found, key=lambda t: (t in (0, frames - 1), abs(t - middle), t)) if frames > 1 else [0]


def link(tracks: list[SmallTrack], motion: Motion) -> list[SmallTrack]:
    """Two tracks of one colour of which one starts where the other's motion leads become one; the best fit first."""
    tracks = list(tracks)
    ends = [_ends(k, motion) for k in tracks]
    while True:
        best: tuple[float, int, int] | None = None
        for i, a in enumerate(tracks):
            for j, b in enumerate(tracks):
                if i != j and a.kind == b.kind:
                    cost = _link_cost(ends[i], ends[j])
                    if cost < 1 and (best is None or cost < best[0]):
                        best = (cost, i, j)
        if best is None:
            return tracks
        _, i, j = best
        a, b = tracks[i], tracks[j]
        a.masks |= b.masks
        a.shown = np.maximum(a.shown, b.shown)
        a.score = max(a.score, b.score)
        ends[i] = _ends(a, motion)
        del tracks[j], ends[j]


@dataclass(frozen=True, eq=False)
class Ends:
    """First and last visible frame, centres (2,) and velocities (2,) there with the background held still, and area."""

    first: int
    last: int
    start: NDArray[np.float64]
    stop: NDArray[np.float64]
    start_move: NDArray[np.float64]
    stop_move: NDArray[np.float64]
    area: float


def _ends(track: SmallTrack, motion: Motion) -> Ends:
    """Centre and velocity come from frames in which the object shows well, carried on to its first and last frame."""
    at = np.nonzero(track.shown > 0)[0]
    area = track.masks.sum((1, 2))
    usual = float(np.median(area[at]))
    good = [int(t) for t in at if area[t] > 0.75 * usual]
    screen = np.zeros((len(area), 2))
    for t in good:
        screen[t] = _centre(track.masks[t])
    zero = np.zeros((len(area), 2))
    for t in range(len(area) - 1):
        # Where the background point at the frame's middle has gone: near enough for an object's own motion.
        middle = np.array([[motion.size[1] / 2, motion.size[0] / 2]])
        zero[t + 1] = zero[t] + apply(motion.camera[t], middle)[0] - middle[0]
    place = screen - zero
    head, tail = good[:6], good[-6:]
    start_move = (place[head[-1]] - place[head[0]]) / max(head[-1] - head[0], 1)
    stop_move = (place[tail[-1]] - place[tail[0]]) / max(tail[-1] - tail[0], 1)
    first, last = int(at[0]), int(at[-1])
    start = place[head[0]] - start_move * (head[0] - first)
    stop = place[tail[-1]] + stop_move * (last - tail[-1])
    return Ends(first, last, start, stop, start_move, stop_move, usual)


def _link_cost(a: Ends, b: Ends) -> float:
    """How badly `b` continues `a`: the miss against what the gap allows, plus the misfit of sizes; below 1 is good."""
    gap = b.first - a.last
    if not 1 <= gap <= 18 or not 0.4 < a.area / b.area < 2.5:
        return np.inf
    way = b.start - a.stop
    moves = (a.stop_move, b.start_move, (a.stop_move + b.start_move) / 2)
    miss = min(float(np.linalg.norm(way - m * gap)) for m in moves)
    return miss / (7 + 1.2 * gap) + 0.3 * abs(float(np.log(a.area / b.area)))


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    ys, xs = np.nonzero(mask)
    return np.array([xs.mean(), ys.mean()])


def distinct(tracks: list[SmallTrack], limit: float) -> list[SmallTrack]:
    """Of tracks that coincide (mean IoU over frames above `limit`) the longer one."""
    out: list[SmallTrack] = []
    for track in sorted(tracks, key=lambda k: -(k.shown > 0).sum()):
        for other in out:
            union = (track.masks | other.masks).sum((1, 2))
            inter = (track.masks & other.masks).sum((1, 2))
            if (inter / np.maximum(union, 1))[union > 0].mean() > limit:
                break
        else:
            out.append(track)
    return out
