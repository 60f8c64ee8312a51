"""Mode "small": flat-coloured objects on small frames, propagated through occlusions by colour class, outline and motion.

Letters: N tracks, T frames, h w pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.base import ShareDone, no_progress
from rvos_cache.trackers.flow import flat
from rvos_cache.trackers.flow.motion import Motion, apply
from rvos_cache.trackers.flow.settings import FlowSettings
from rvos_cache.trackers.flow.small_tracks import SmallTrack, distinct, link

PAD = 48
"""Pixels around the frame in which the position of an object that has left the frame is still predicted."""
LOST = 0.15
"""Share of the outline that must be visible for an object to count as visible."""
FOUND = 0.5
"""Share that must be visible for a lost object to count as visible again."""
COMPONENT_BYTES = 1 << 25
"""Memory for connected components that are computed once and used again."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A region proposal of key frame `frame`; its mask is kept in the spool under `number`."""

    frame: int
    number: int
    colour_class: int
    score: float


@dataclass(eq=False)
class State:
    """A track in one direction of time.

    outline: uint8 (a, b); corner: x y of its top left pixel; velocity: x y in pixels per frame with the background held still;
    gap: consecutive frames in which it has been lost; steady: frames in which its area has hardly changed;
    kernel: (a + 4, b + 4), rewards pixels of the colour class under the outline and penalises them in a thin ring around it.
    """

    outline: NDArray[np.uint8]
    corner: NDArray[np.float64]
    velocity: NDArray[np.float64]
    gap: int = 0
    steady: int = 0
    kernel: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.set_outline(self.outline)

    def set_outline(self, outline: NDArray[np.uint8]) -> None:
        """Replace the outline, and the kernel with it."""
        self.outline = outline
        wide = np.pad(outline, 2)
        ring = cv2.dilate(wide, np.ones((5, 5), np.uint8)) - wide
        self.kernel = wide.astype(np.float32) - 0.4 * ring.astype(np.float32)


class SmallVideo:
    """One video: its colour classes per frame and the tracks found so far. The motion's step must be 1."""

    def __init__(self, motion: Motion, settings: FlowSettings) -> None:
        self.motion, self.settings = motion, settings
        self.frames, self.size, self.arrays = motion.frames, motion.size, motion.arrays
        for t in range(self.frames):
            self.arrays["lab", t] = flat.lab_of(motion.frame(t))
        self.keys = key_frames(self.frames, settings.small_key_every)
        samples = sorted({round(i * (self.frames - 1) / 4) for i in range(5)})
        self.colours = flat.colour_classes([r for t in samples for r in flat.flat_regions(self._lab(t), t)])
        for t in range(self.frames):
            self.arrays["classes", t] = flat.classify(self._lab(t), self.colours)
        self.prompts = {t: self._proposals(t) for t in self.keys}
        self.components: OrderedDict[tuple[int, int], NDArray[np.int32]] = OrderedDict()
        self.tracks: list[SmallTrack] = []
        self.started = 0

    def run(self, progress: ShareDone = no_progress) -> tuple[RleMasks, NDArray[np.float64], NDArray[np.int32]]:
        """Masks (N, T), visible shares of the outlines (N, T) and prompt frames (N,) of all tracks, best first.

        The colour classes are tracked one after the other, since tracks of different colours do not compete for pixels. The key
        frames in which a colour has most separate regions come first, so that two objects of one appearance are not tracked as
        one where they touch.
        """
        for colour_class in range(len(self.colours)):
            self._track_class(colour_class)
            progress(0.8 * (colour_class + 1) / len(self.colours))
        tracks = distinct(link(self.tracks, self.motion), self.settings.duplicate_iou)
        tracks.sort(key=lambda k: -(k.score + (k.visible > 0).mean()))
        tracks = tracks[: min(self.settings.small_max_tracks, self.settings.max_tracks)]
        if not tracks:
            return RleMasks.empty(0, self.frames, self.size), np.zeros((0, self.frames)), np.zeros(0, np.int32)
        masks = RleMasks.from_bytes([track.encode() for track in tracks], self.frames, self.size)
        return masks, np.stack([track.visible for track in tracks]), np.array([track.frame for track in tracks], np.int32)

    def _track_class(self, colour_class: int) -> None:
        prompts = {t: [p for p in self.prompts[t] if p.colour_class == colour_class] for t in self.keys}
        for t in sorted(self.keys, key=lambda t: -len(prompts[t])):
            uncovered = [prompt for prompt in prompts[t] if not self._covered(prompt)]
            started = [self._start(prompt) for prompt in uncovered]
            self.tracks += [track for track, _ in started]
            for direction in (1, -1):
                self._propagate(started, t, direction)
        lasting = [(k.visible > 0).sum() >= min(3, self.frames) for k in self.tracks]
        for track, keep in zip(self.tracks, lasting):
            if not keep:
                track.discard()
        self.tracks = [track for track, keep in zip(self.tracks, lasting) if keep]

    def _lab(self, t: int) -> NDArray[np.float32]:
        return self.arrays["lab", t]

    def _classes(self, t: int) -> NDArray[np.int8]:
        return self.arrays["classes", t]

    def _proposals(self, t: int) -> list[Prompt]:
        out = []
        for number, region in enumerate(flat.proposals(self._classes(t), self._lab(t), len(self.colours), t)):
            colour_class = int(np.argmin(np.linalg.norm(self.colours - region.colour, axis=1)))
            self.arrays["region", t, number] = region.mask
            out.append(Prompt(t, number, colour_class, region.score))
        return out

    def _covered(self, prompt: Prompt) -> bool:
        """Whether tracks of its colour class already cover half of the region."""
        region = self.arrays["region", prompt.frame, prompt.number]
        covered = self._occupied(prompt.colour_class, prompt.frame)
        return bool((covered & region).sum() > 0.5 * region.sum())

    def _start(self, prompt: Prompt) -> tuple[SmallTrack, NDArray[np.bool_]]:
        """A track with its first mask, and the region (h, w) that it starts from."""
        t, colour_class = prompt.frame, prompt.colour_class
        region = self.arrays["region", t, prompt.number]
        core = region & (self._classes(t) == colour_class)
        start = core if core.sum() > 0.5 * region.sum() else region
        track = SmallTrack(self.arrays, self.started, t, colour_class, prompt.score, self.frames, self.size)
        self.started += 1
        track.set_mask(t, flat.fill_rim(start, self._lab(t), self.colours[colour_class]))
        track.visible[t] = 1
        return track, start

    def _propagate(self, started: list[tuple[SmallTrack, NDArray[np.bool_]]], start: int, direction: int) -> None:
        states = []
        for _, region in started:
            x, y, w, h = cv2.boundingRect(region.astype(np.uint8))
            outline = region[y : y + h, x : x + w].astype(np.uint8)
            states.append(State(outline, np.array([x, y], float), self._first_velocity(region, start, direction)))
        tracks = [track for track, _ in started]
        t = start + direction
        while 0 <= t < self.frames and tracks:
            # Tracks that were most visible in the frame before take their pixels first, lost ones last.
            order = sorted(range(len(tracks)), key=lambda i: (states[i].gap > 0, -tracks[i].visible[t - direction], i))
            for i in order:
                self._step(tracks[i], states[i], t, direction)
            t += direction

    def _first_velocity(self, region: NDArray[np.bool_], t: int, direction: int) -> NDArray[np.float64]:
        """Median flow in the region (h, w) without the camera motion."""
        if not 0 <= t + direction < self.frames:
            return np.zeros(2)
        ys, xs = np.nonzero(region)
        median = np.median(self.motion.flow(t, direction)[ys, xs].astype(float), axis=0)
        centre = np.array([[xs.mean(), ys.mean()]])
        return np.asarray(median - (apply(self.motion.background(t, direction), centre) - centre)[0], np.float64)

    def _occupied(self, colour_class: int, t: int, without: SmallTrack | None = None) -> NDArray[np.bool_]:
        """Pixels (h, w) of frame t that belong to tracks of a colour class, other than the track `without`."""
        out = np.zeros(self.size, bool)
        for other in self.tracks:
            if other is not without and other.colour_class == colour_class and other.area[t]:
                out |= other.mask(t)
        return out

    def _step(self, track: SmallTrack, state: State, t: int, direction: int) -> None:
        """Move one track into frame t."""
        background = self.motion.background(t - direction, direction)
        middle = state.corner + np.array(state.outline.shape[::-1]) / 2
        camera = apply(background, middle[None])[0] - middle
        predicted = state.corner + camera + state.velocity
        classes = self._classes(t)
        occupied = self._occupied(track.colour_class, t, track)
        value = np.where(classes == track.colour_class, 1.0, np.where(classes >= 0, -0.1, -1.0)).astype(np.float32)
        value[occupied] = -0.5
        others = self._occupied(track.colour_class, t - direction, track)
        crowded = bool(others.any()) and self._crowded(track, others, t, direction)
        corner = self._align(state, value, predicted, crowded)
        mask, share, complete = self._cut(track, state, occupied, corner, t, direction, crowded)
        if share < (LOST if state.gap == 0 else FOUND):
            state.gap += 1
            height, width = self.size
            low = -np.array(state.outline.shape[::-1], float)
            state.corner = np.clip(predicted, low - 8, [width + 8, height + 8])
            return
        track.set_mask(t, flat.fill_rim(mask, self._lab(t), self.colours[track.colour_class]) & ~occupied)
        track.visible[t] = min(share, 1.0)
        gain = 0.1 if crowded else 0.5 if share > 0.8 else 0.0
        if state.gap == 0:
            state.velocity += gain * (corner - (state.corner + camera) - state.velocity)
        state.gap = 0
        state.corner = corner
        if complete and 0.92 < share < 1.08:
            state.steady += 1
        if share > 0.85 and complete and not crowded:
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            state.set_outline(mask[y : y + h, x : x + w].astype(np.uint8))
            state.corner = np.array([x, y], float)

    def _crowded(self, track: SmallTrack, others: NDArray[np.bool_], t: int, direction: int) -> bool:
        """Whether another track of the same colour class was within three pixels of this one in the frame before."""
        near = cv2.dilate(track.mask(t - direction).astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
        return bool((near & others).any())

    def _align(
        self, state: State, value: NDArray[np.float32], predicted: NDArray[np.float64], crowded: bool
    ) -> NDArray[np.float64]:
        """The corner near `predicted` at which the outline fits the frame's class values (h, w) best."""
        speed = float(np.abs(state.velocity).max())
        reach = round(min(4 + speed, 10)) if state.gap == 0 else round(min(5 + 2.0 * state.gap, 16))
        padded = np.pad(value, PAD)
        a, b = state.outline.shape
        x, y = round(float(predicted[0])) + PAD - 2, round(float(predicted[1])) + PAD - 2
        y0, x0 = max(0, y - reach), max(0, x - reach)
        window = padded[y0 : y + a + 4 + reach, x0 : x + b + 4 + reach]
        if window.shape[0] < a + 4 or window.shape[1] < b + 4:
            return predicted
        fit = cv2.matchTemplate(window, state.kernel, cv2.TM_CCORR)
        ys, xs = np.mgrid[0 : fit.shape[0], 0 : fit.shape[1]]
        distance = (ys + y0 - PAD + 2 - predicted[1]) ** 2 + (xs + x0 - PAD + 2 - predicted[0]) ** 2
        weight = 1.0 if crowded else 0.3 if state.gap == 0 else 0.5
        fit = fit - weight * state.outline.sum() * distance / (reach + 1) ** 2
        best = np.unravel_index(int(np.argmax(fit)), fit.shape)
        return np.array([best[1] + x0 - PAD + 2, best[0] + y0 - PAD + 2], float)

    def _cut(
        self,
        track: SmallTrack,
        state: State,
        occupied: NDArray[np.bool_],
        corner: NDArray[np.float64],
        t: int,
        direction: int,
        crowded: bool,
    ) -> tuple[NDArray[np.bool_], float, bool]:
        """The track's pixels bool (h, w) for its outline at `corner`, the share of the outline that they fill, and whether they
        are complete components of the colour class: then they may become the next outline."""
        h, w = self.size
        a, b = state.outline.shape
        x, y = int(corner[0]), int(corner[1])
        placed = np.zeros((h + 2 * PAD, w + 2 * PAD), np.uint8)
        y0, x0 = np.clip(y + PAD, 0, h + 2 * PAD - 1), np.clip(x + PAD, 0, w + 2 * PAD - 1)
        part = placed[y0 : y0 + a, x0 : x0 + b]
        part[:] = state.outline[: part.shape[0], : part.shape[1]]
        inside = placed[PAD : PAD + h, PAD : PAD + w]
        near = cv2.dilate(inside, np.ones((3, 3), np.uint8)).astype(bool)
        free = (self._classes(t) == track.colour_class) & ~occupied
        components = self._components(t, track.colour_class)
        area = int(state.outline.sum())
        out = np.zeros((h, w), bool)
        complete = True
        for label in np.unique(components[(inside > 0) & free]):
            component = (components == label) & free
            size = int(component.sum())
            covered = int((component & near).sum())
            if covered < 5:
                continue
            touches = component[0].any() or component[-1].any() or component[:, 0].any() or component[:, -1].any()
            # Until its size has been steady for some frames the object may be emerging from behind another and grow fast. After
            # that, or if another component of the colour was near in the frame before, a much larger component is two objects.
            may_grow = touches or state.steady < 4 or size <= 1.15 * area
            alone = may_grow and not (size > 1.15 * area and self._neighbour(track, component, t, direction))
            limit = 1.05 if crowded else 2.2 if alone else 1.15
            fits = size < limit * area + 6 and covered > (0.3 if touches else 0.5) * size
            complete &= fits
            out |= component if fits else component & near
        return out, float(out.sum()) / max(area, 1), complete

    def _neighbour(self, track: SmallTrack, component: NDArray[np.bool_], t: int, direction: int) -> bool:
        """Whether in the frame before a component of the colour that is not the track's was within four pixels of `component`."""
        before = self._components(t - direction, track.colour_class)
        own = np.unique(before[track.mask(t - direction)])
        near = cv2.dilate(component.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        labels = before[near]
        return int(((labels > 0) & ~np.isin(labels, own)).sum()) > 15

    def _components(self, t: int, colour_class: int) -> NDArray[np.int32]:
        """Labels (h, w) of the connected components of a colour class in frame t, 0 elsewhere."""
        labels = self.components.get((t, colour_class))
        if labels is None:
            labels = cv2.connectedComponents((self._classes(t) == colour_class).astype(np.uint8), connectivity=4)[1]
            self.components[t, colour_class] = labels
            while len(self.components) > max(2, COMPONENT_BYTES // labels.nbytes):
                self.components.popitem(last=False)
        else:
            self.components.move_to_end((t, colour_class))
        return labels


def key_frames(frames: int, every: int) -> list[int]:
    """Every `every`-th frame by distance from the middle one, then the first and the last frame."""
    middle = frames // 2
    keys = {*range(middle, frames, every), *range(middle, -1, -every), 0, frames - 1}
    return sorted(keys, key=lambda t: (t in (0, frames - 1), abs(t - middle), t)) if frames > 1 else [0]
