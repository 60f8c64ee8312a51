"""Tokens of 256 numbers per track and frame, made from masks, frames and flow alone.

A token says what its frame shows of the track and when: nothing in it adds up over time or looks at other tracks, so that
what happens over time and between objects is left to the selection module. Most numbers are soft bins: a quantity is spread over
its two nearest bin centres by linear interpolation, which keeps all parts of a token alike in size; the parts of LOUD are
then multiplied, since a selection module starts by hearing every channel alike and they have few or faint ones.

Coordinates: x to the right, y down, the frame's width and height each run from -1 to 1; D is the frame's diagonal and
s(v) = tanh(v / 0.02 D) squashes a speed in pixels per frame, so 0.02 D per frame (four pixels at 96x160) is 0.76.
Velocities are differences between the frames before and after (at the ends of the track's life: one of them), growth is the
slope over the three frames before and after.

While a track is hidden its position lies on the straight line between the frames around the gap, and its size, shape
and colour keep the last visible frame's values (before the first visible frame: the first one's); before the first and
after the last visible frame it stands still. Local flow and border contacts are 0 while it is hidden. A track that is
never visible has zeros everywhere.

| part      | size | what |
|---|---|---|
| visible   | 2  | 1 when the mask has pixels; 1 when it has none |
| position  | 24 | centre: 12 bins of x, 12 of y, from -1 to 1 |
| velocity  | 30 | against the background (the camera's homography is taken off step by step): 11 bins of s(vx), 11 of s(vy), |
|           |    | from -0.95 to 0.95; 8 bins of the speed s(|v|) from 0 to 0.95 |
| heading   | 8  | of the velocity: squared cosines to right, down-right, down ...; 0 below half a pixel per frame |
| screen    | 30 | the velocity on the screen |
| growth    | 11 | bins of tanh(g / 0.05) from -0.95 to 0.95, g the growth of the log area per frame |
| size      | 31 | 15 bins of the log area share from -8 to -0.5; 8 bins each of the log width and height shares from -4 to 0 |
| shape     | 28 | log aspect of the box; eccentricity times sin, cos of twice the orientation; eccentricity; 8 bins each of |
|           |    | solidity, circularity and share of the box, from 0.4 to 1 |
| ring      | 8  | magnitudes of Fourier terms 1..8 of the radius in 16 sectors (they do not change with orientation) |
| profile   | 8  | mean outline radius in 8 sectors over that of a disk of the same area, minus 1 |
| colour    | 36 | 12 bins each of the mean L, a, b from -0.9 to 0.9 |
| palette   | 16 | square roots of the shares of 12 hues and 4 greys |
| texture   | 6  | standard deviation of L, a, b (times 4); mean L, a, b against the surround |
| flow      | 6  | local flow against the background: s of the mean x, y and std x, y; divergence and curl (tanh of 5x) |
| border    | 4  | whether the mask touches the frame's left, top, right, bottom |
| time      | 8  | bins of the frame's place in the video, from 0 (first) to 1 (last) |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.flow import motion as flows
from rvos_cache.trackers.flow import shape
from rvos_cache.trackers.flow.motion import Motion, Reader
from rvos_cache.trackers.flow.paths import Life, growth, paths, velocity

CHANNELS = 256
PARTS = {
    "visible": 2, "position": 24, "velocity": 30, "heading": 8, "screen": 30, "growth": 11, "size": 31, "shape": 28,
    "ring": 8, "profile": 8, "colour": 36, "palette": 16, "texture": 6, "flow": 6, "border": 4, "time": 8,
}  # fmt: skip
_ends = np.cumsum(list(PARTS.values()))
SLICES = {name: slice(int(end) - size, int(end)) for (name, size), end in zip(PARTS.items(), _ends)}
"""Part name -> the slice of C that holds it."""
LOUD = {"heading": 2.0, "growth": 2.5, "ring": 2.0, "shape": 1.5, "time": 1.5}
"""Part name -> factor. Measured with SOLA on moving shapes: growing and shrinking are not learned in time without growth's,
and the sense of a circle not without heading's."""

Array = NDArray[np.float64]


def describe(read: Reader, masks: RleMasks, motion: Motion | None = None) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Tokens float16 (N, T, 256) and presence float16 (N, T) of any masks (N, T) over the frames that `read` gives.

    `motion` is measured from the frames when it is not given. Presence is 0 where a mask is empty, else between 0.5
    and 1, rising with its area against the track's median area.
    """
    n, t = masks.shape
    presence = _presence(masks.area().astype(float))
    if n == 0:
        return np.zeros((0, t, CHANNELS), np.float16), presence
    if motion is None:
        motion = flows.measure(read, t, flows.work_step(masks.size, 240))
    out = np.stack([token(life) for life in _measure(read, masks, motion)])
    return np.clip(np.nan_to_num(out), -4, 4).astype(np.float16), presence


def _presence(area: Array) -> NDArray[np.float16]:
    out = np.zeros(area.shape)
    for i, row in enumerate(area):
        if row.any():
            out[i] = np.where(row > 0, 0.5 + 0.5 * np.clip(row / np.median(row[row > 0]), 0, 1), 0)
    return out.astype(np.float16)


def _measure(read: Reader, masks: RleMasks, motion: Motion) -> list[Life]:
    """Every mask measured on its frame; each track's life then in one piece."""
    n, t = masks.shape
    stats: list[list[shape.MaskStats | None]] = [[] for _ in range(n)]
    for frame in range(t):
        field = np.zeros((*motion.size, 2), np.float32)
        if t > 1:
            direction = 1 if frame < t - 1 else -1
            background = flows.camera_field(motion.background(frame, direction), motion.size)
            field = direction * (motion.flow(frame, direction) - background)
        view = shape.pixels(flows.shrink(read(frame), motion.step), field)
        for i in range(n):
            mask = masks.decode(i, frame)[:: motion.step, :: motion.step]
            stats[i].append(shape.measure(np.ascontiguousarray(mask, dtype=np.uint8), view))
    return [paths(row, motion) for row in stats]


def token(life: Life) -> Array:
    """The tokens (T, C) of one track, laid out as the table above says."""
    out = np.zeros((len(life.visible), CHANNELS))
    if not life.visible.any():
        return out
    h, w = life.size
    d = life.diagonal
    seen = life.visible.astype(float)[:, None]
    spot = (life.screen + 0.5) / [w, h] * 2 - 1
    extent = np.log(np.maximum((life.box[:, 2:] - life.box[:, :2]) / [w, h], 1e-6))
    moved = velocity(life.world, life.first, life.last)
    gaps = np.stack([life.box[:, 0], life.box[:, 1], w - life.box[:, 2], h - life.box[:, 3]], 1)
    parts = {
        "visible": [seen, 1 - seen],
        "position": [bins(spot[:, k], -1, 1, 12) for k in (0, 1)],
        "velocity": _moves(moved, d),
        "heading": [_heading(moved)],
        "screen": _moves(velocity(life.screen, life.first, life.last), d),
        "growth": [bins(np.tanh(growth(life.area, life.first, life.last) / 0.05), -0.95, 0.95, 11)],
        "size": [bins(np.log(life.area / (h * w)), -8, -0.5, 15), *(bins(extent[:, k], -4, 0, 8) for k in (0, 1))],
        "shape": [life.shape[:, :4], *(bins(life.shape[:, k], 0.4, 1, 8) for k in (4, 5, 6))],
        "ring": [np.abs(np.fft.rfft(life.profile, axis=1))[:, 1:9] / 2],
        "profile": [np.clip(life.profile, -1, 2).reshape(-1, 8, 2).mean(2)],
        "colour": [bins(life.colour[:, k], -0.9, 0.9, 12) for k in range(3)],
        "palette": [np.sqrt(life.histogram)],
        "texture": [life.colour[:, 3:]],
        "flow": [_squash(life.flow[:, :4], d) * seen, np.tanh(5 * life.flow[:, 4:]) * seen],
        "border": [(gaps < 1.5) * seen],
        "time": [bins(np.linspace(0, 1, len(seen)), 0, 1, 8)],
    }
    for name, where in SLICES.items():
        out[:, where] = np.concatenate(parts[name], 1) * LOUD.get(name, 1.0)
    return out


def mirrored(tokens: NDArray[np.float16]) -> NDArray[np.float16]:
    """The tokens (N, T, 256) of the same tracks in frames flipped from left to right."""
    order, sign = np.arange(CHANNELS), np.ones(CHANNELS, np.float16)

    def rearranged(part: str, first: int, places: Sequence[int]) -> None:
        start = SLICES[part].start + first
        order[start : start + len(places)] = start + np.array(places)

    rearranged("position", 0, range(11, -1, -1))
    for part in ("velocity", "screen"):
        rearranged(part, 0, range(10, -1, -1))
    rearranged("heading", 0, [(4 - k) % 8 for k in range(8)])
    # sector k spans the angles from k to k + 1 eighths of a turn
    rearranged("profile", 0, [(3 - k) % 8 for k in range(8)])
    rearranged("border", 0, [2, 1, 0, 3])
    sign[SLICES["shape"].start + 1] = -1  # the sine of twice the orientation
    sign[[SLICES["flow"].start, SLICES["flow"].start + 5]] = -1  # the mean x, and the curl
    return np.asarray(tokens[..., order] * sign, np.float16)


def bins(value: Array, low: float, high: float, count: int) -> Array:
    """Soft bins (T, count) of `value` (T,) cut to [low, high]: linear interpolation between evenly spaced centres."""
    at = (np.clip(value, low, high) - low) / (high - low) * (count - 1)
    return np.asarray(np.clip(1 - np.abs(at[:, None] - np.arange(count)), 0, 1), np.float64)


def _moves(v: Array, diagonal: float) -> list[Array]:
    """The parts of a velocity (T, 2) in working pixels per frame: x, y, speed."""
    x, y = _squash(v, diagonal).T
    speed = np.linalg.norm(v, axis=1)
    return [bins(x, -0.95, 0.95, 11), bins(y, -0.95, 0.95, 11), bins(_squash(speed, diagonal), 0, 0.95, 8)]


def _heading(v: Array) -> Array:
    """Squared cosines (T, 8) of the angles between a velocity (T, 2) and eight directions."""
    turn = np.arctan2(v[:, 1], v[:, 0])[:, None] - np.arange(8) * np.pi / 4
    # below about half a pixel per frame a direction is noise
    return np.asarray(np.clip(np.cos(turn), 0, 1) ** 2 * np.tanh((np.linalg.norm(v, axis=1) / 0.5) ** 2)[:, None], np.float64)


def _squash(value: Array, diagonal: float) -> Array:
    return np.tanh(value / (0.02 * diagonal))
