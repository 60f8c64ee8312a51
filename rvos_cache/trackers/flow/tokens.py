"""Tokens of 256 numbers per track and frame, made from masks, frames and flow alone.

Coordinates: x to the right, y down, the frame's width and height each run from -1 to 1 where a position is meant;
lengths are fractions of the frame's diagonal D. `s(v)` = tanh(v / 0.02 D) squashes a speed in pixels per frame, so
0.02 D per frame (four pixels at 96x160) is 0.76. "rel." is motion relative to the background: the camera's homography
is taken off step by step. A lag k compares the frames t - k/2 and t + k/2, cut at the ends of the track's life.

While a track is hidden its position lies on the straight line between the frames around the gap, and its size, shape
and colour keep the last visible frame's values (before the first visible frame: the first one's); before the first and
after the last visible frame it stands still. Local flow and border contacts are 0 while it is hidden. A track that is
never visible has zeros everywhere except for `time`.

| part         | size | what |
|---|---|---|
| visible      | 2  | 1 when the mask has pixels; share of visible frames within 4 frames |
| time         | 6  | t from -1 to 1; frames since first seen and until last seen, over T; first, last, visible |
|              |    | share of T |
| position     | 4  | centre x, y on screen; centre x, y on the background, from the track's first frame |
| box          | 6  | x0 y0 x1 y1; width, height as shares of the frame's |
| fourier      | 16 | sin and cos of pi 2^k x, then of y, k = 0..3 |
| time_fourier | 8  | sin and cos of pi 2^k t/T, k = 0..3 |
| velocity     | 8  | s of vx, vy on screen for lags 1, 2, 4, 8 |
| relative     | 8  | the same, rel. |
| speed        | 8  | s of the speeds on screen, then rel., lags 1, 2, 4, 8 |
| heading      | 10 | unit heading cos, sin: rel. lags 2, 4, 8, then screen lags 4, 8; shrinks to 0 below half a pixel |
| acceleration | 9  | s of the rel. velocity's change x, y over lags 2, 4, 8; of the speed's change over the same |
| turning      | 8  | sin and 1-cos of the heading's change over lags 2, 4, 8; signed and absolute turn so far, / 2 pi |
| growth       | 7  | log area share; log growth over lags 1, 2, 4, 8 (tanh of 4x); since the first frame; against |
|              |    | the maximum |
| compass      | 16 | soft eight-way heading times s(speed): right, down-right, down ... rel. lag 4, then screen lag 4 |
| path         | 13 | displacement so far rel. x, y, length; on screen x, y; still to come rel. x, y; path rel., |
|              |    | screen; straightness; net rel. heading cos, sin; turned on the spot |
| summary      | 14 | whole life: rel. net x, y; first centre x, y; last centre x, y; x and y range (4); max and |
|              |    | mean rel. speed; share of still frames; log growth |
| shape        | 14 | seven Hu moments; log aspect; eccentricity times sin, cos of twice the orientation; |
|              |    | eccentricity; solidity; circularity; share of the box |
| spin         | 2  | sin and cos-1 of twice the orientation's change over lag 4, times eccentricity |
| profile      | 16 | mean outline radius in 16 sectors over that of a disk of the same area, minus 1 |
| ring         | 8  | magnitudes of the profile's Fourier terms 1..8 (they do not change with orientation) |
| colour       | 9  | mean Lab, std Lab (x4), Lab against the surround |
| histogram    | 16 | shares of 12 hues and 4 greys |
| flow         | 6  | s of the rel. flow in the mask: mean x, y, std x, y; divergence, curl (tanh of 5x) |
| camera       | 4  | s of the camera's motion at the centre x, y; camera displacement there so far x, y |
| border       | 8  | distances of the box to left, top, right, bottom; contact flags of the same |
| nearest      | 16 | the two nearest other visible tracks, each: dx, dy, distance, rel. velocity x, y, approach |
|              |    | speed, log area ratio, Lab distance |
| crowd        | 9  | mean offset x, y and mean rel. velocity x, y against all others; rank by x, y, area, speed; |
|              |    | share of the box that other boxes cover |
| spare        | 5  | 0 |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.flow import motion as flows
from rvos_cache.trackers.flow import shape
from rvos_cache.trackers.flow.motion import Motion, Reader
from rvos_cache.trackers.flow.paths import Life, lag, paths, unit

CHANNELS = 256
PARTS = {
    "visible": 2, "time": 6, "position": 4, "box": 6, "fourier": 16, "time_fourier": 8, "velocity": 8, "relative": 8,
    "speed": 8, "heading": 10, "acceleration": 9, "turning": 8, "growth": 7, "compass": 16, "path": 13, "summary": 14,
    "shape": 14, "spin": 2, "profile": 16, "ring": 8, "colour": 9, "histogram": 16, "flow": 6, "camera": 4,
    "border": 8, "nearest": 16, "crowd": 9, "spare": 5,
}  # fmt: skip
_ends = np.cumsum(list(PARTS.values()))
SLICES = {name: slice(int(end) - size, int(end)) for (name, size), end in zip(PARTS.items(), _ends)}
"""Part name -> the slice of C that holds it."""

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
    lives = _measure(read, masks, motion)
    out = np.zeros((n, t, CHANNELS))
    for i, life in enumerate(lives):
        _single(out[i], life, t)
    _between(out, lives, t)
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


def _squash(value: Array, diagonal: float) -> Array:
    return np.tanh(value / (0.02 * diagonal))


def _single(out: Array, life: Life, t: int) -> None:
    """All parts of one track (T, C) that do not need other tracks."""
    put = {name: out[:, where] for name, where in SLICES.items()}
    clock = np.arange(t) / max(t - 1, 1)
    seen = life.visible
    put["time"][:, 0] = clock * 2 - 1
    if not seen.any():
        return
    h, w = life.size
    d = life.diagonal
    near = np.convolve(seen, np.ones(9), "same") / np.convolve(np.ones(t), np.ones(9), "same")
    if t < 9:
        near = np.full(t, seen.mean())
    put["visible"][:] = np.stack([seen, near], 1)
    frames = np.arange(t)
    first, last = life.first, life.last
    put["time"][:, 1] = np.maximum(frames - first, 0) / t
    put["time"][:, 2] = np.maximum(last - frames, 0) / t
    put["time"][:, 3:] = [first / t, last / t, seen.mean()]
    scale = np.array([w, h])
    spot = (life.screen + 0.5) / scale * 2 - 1
    put["position"][:] = np.concatenate([spot, (life.world - life.world[first]) / d * 2], 1)
    corners = life.box / [w, h, w, h] * 2 - 1
    put["box"][:, :4] = corners
    put["box"][:, 4:] = (life.box[:, 2:] - life.box[:, :2]) / scale
    put["fourier"][:] = np.concatenate([_codes(spot[:, 0]), _codes(spot[:, 1])], 1)
    put["time_fourier"][:] = _codes(clock)
    _moves(put, life, d)
    _whole(put, life, d)
    put["shape"][:] = life.shape
    spin = 2 * lag(np.unwrap(2 * life.theta) / 2, 4, first, last) * 4
    eccentric = life.shape[:, 10]
    put["spin"][:] = np.stack([np.sin(spin), np.cos(spin) - 1], 1) * eccentric[:, None]
    put["profile"][:] = np.clip(life.profile, -1, 2)
    put["ring"][:] = np.abs(np.fft.rfft(life.profile, axis=1))[:, 1:9] / 4
    put["colour"][:] = life.colour
    put["histogram"][:] = life.histogram
    put["flow"][:, :4] = _squash(life.flow[:, :4], d)
    put["flow"][:, 4:] = np.tanh(5 * life.flow[:, 4:])
    put["flow"][~seen] = 0
    drift = life.screen - life.world
    put["camera"][:, :2] = _squash(lag(drift, 2, first, last), d)
    put["camera"][:, 2:] = (drift - drift[first]) / d * 2
    gaps = np.stack([life.box[:, 0], life.box[:, 1], w - life.box[:, 2], h - life.box[:, 3]], 1)
    put["border"][:, :4] = np.tanh(4 * gaps / d)
    put["border"][:, 4:] = (gaps < 1.5) & seen[:, None]


def _codes(value: Array) -> Array:
    angle = np.pi * value[:, None] * 2.0 ** np.arange(4)
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)


def _moves(put: dict[str, Array], life: Life, d: float) -> None:
    """Velocity, heading, acceleration, turning, growth and compass of one track."""
    first, last = life.first, life.last
    screen = {k: lag(life.screen, k, first, last) for k in (1, 2, 4, 8)}
    world = {k: lag(life.world, k, first, last) for k in (1, 2, 4, 8)}
    put["velocity"][:] = np.concatenate([_squash(v, d) for v in screen.values()], 1)
    put["relative"][:] = np.concatenate([_squash(v, d) for v in world.values()], 1)
    speeds = [np.linalg.norm(v, axis=1) for v in (*screen.values(), *world.values())]
    put["speed"][:] = _squash(np.stack(speeds, 1), d)
    heads = [unit(v) for v in (world[2], world[4], world[8], screen[4], screen[8])]
    put["heading"][:] = np.concatenate(heads, 1)
    quick = np.linalg.norm(world[2], axis=1)
    push, pull = [], []
    for k in (2, 4, 8):
        push.append(_squash(lag(world[2], k, first, last) * k, d))
        pull.append(_squash(lag(quick, k, first, last) * k, d))
    put["acceleration"][:] = np.concatenate([*push, np.stack(pull, 1)], 1)
    head = unit(world[2])
    for i, k in enumerate((2, 4, 8)):
        frames = np.arange(len(head))
        a, b = head[np.clip(frames - k // 2, first, last)], head[np.clip(frames + k // 2, first, last)]
        size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        put["turning"][:, 2 * i] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
        put["turning"][:, 2 * i + 1] = size - (a * b).sum(1)
    smooth = unit(world[4])
    step = np.zeros(len(smooth))
    cross = smooth[:-1, 0] * smooth[1:, 1] - smooth[:-1, 1] * smooth[1:, 0]
    step[1:] = np.arctan2(cross, (smooth[:-1] * smooth[1:]).sum(1)) * np.linalg.norm(smooth[:-1], axis=1)
    put["turning"][:, 6] = np.tanh(np.cumsum(step) / (2 * np.pi))
    put["turning"][:, 7] = np.tanh(np.cumsum(np.abs(step)) / (2 * np.pi))
    h, w = life.size
    size = np.log(life.area)
    put["growth"][:, 0] = np.log(life.area / (h * w)) / 8 + 0.5
    for i, k in enumerate((1, 2, 4, 8)):
        put["growth"][:, 1 + i] = np.tanh(4 * lag(size, k, first, last) * k)
    put["growth"][:, 5] = np.tanh(size - size[first])
    put["growth"][:, 6] = np.tanh(size - size.max())
    eight = np.arange(8) * np.pi / 4
    for i, v in enumerate((world[4], screen[4])):
        strength = _squash(np.linalg.norm(v, axis=1), d)[:, None]
        cosine = np.cos(np.arctan2(v[:, 1], v[:, 0])[:, None] - eight)
        put["compass"][:, 8 * i : 8 * i + 8] = strength * np.clip(cosine, 0, 1) ** 2


def _whole(put: dict[str, Array], life: Life, d: float) -> None:
    """Path so far and the whole life of one track."""
    first, last = life.first, life.last
    world, screen = life.world - life.world[first], life.screen - life.screen[first]
    inside = slice(first, last + 1)
    smooth = lag(life.world, 4, first, last)
    steps = np.linalg.norm(smooth, axis=1)
    path = np.cumsum(steps) - steps[first]
    glide = np.cumsum(np.linalg.norm(lag(life.screen, 4, first, last), axis=1))
    gone = np.linalg.norm(world, axis=1)
    rest = world[last] - world
    straight = np.clip(gone / np.maximum(path, 1.0), 0, 1)
    still = np.tanh(np.maximum(path - gone, 0) / (0.2 * d))
    net = unit(world / 4)
    cut = [world / d * 2, gone[:, None] / d * 2, screen / d * 2, rest / d * 2, path[:, None] / d, glide[:, None] / d]
    put["path"][:] = np.concatenate([*cut, straight[:, None], net, still[:, None]], 1)
    h, w = life.size
    spot = (life.screen + 0.5) / [w, h] * 2 - 1
    seen = spot[inside]
    speed = _squash(steps[inside], d)
    values = [*(world[last] / d * 2), *spot[first], *spot[last], *seen.min(0), *seen.max(0), speed.max(), speed.mean()]
    quiet = float((steps[inside] < 0.002 * d).mean())
    put["summary"][:] = [*values, quiet, np.tanh(np.log(life.area[last] / life.area[first]))]


def _between(out: Array, lives: list[Life], t: int) -> None:
    """The parts that compare a track with the others of its frame; tracks that cover it (box IoU > 0.4) do not count."""
    if len(lives) < 2:
        return
    visible = np.stack([life.visible for life in lives], 1)
    centre = np.stack([life.screen for life in lives], 1)
    speed = np.stack([lag(life.world, 4, life.first, life.last) for life in lives], 1)
    box = np.stack([life.box for life in lives], 1)
    area = np.stack([np.log(life.area) for life in lives], 1)
    colour = np.stack([life.colour[:, :3] for life in lives], 1)
    d = lives[0].diagonal
    for frame in range(t):
        here = np.nonzero(visible[frame])[0]
        if len(here) < 2:
            continue
        gap = centre[frame, here][None] - centre[frame, here][:, None]
        inter, iou = _boxes(box[frame, here])
        other = (iou < 0.4) & ~np.eye(len(here), dtype=bool)
        far = np.where(other, np.linalg.norm(gap, axis=-1), np.inf)
        order = np.argsort(far, axis=1, kind="stable")
        drift = speed[frame, here][None] - speed[frame, here][:, None]
        for row, i in enumerate(here):
            values = np.zeros(16)
            for slot, j in enumerate(order[row, :2]):
                if not np.isfinite(far[row, j]):
                    continue
                approach = -float(gap[row, j] @ drift[row, j]) / max(far[row, j], 1e-6)
                ratio = np.tanh(area[frame, here[j]] - area[frame, i])
                paint = float(np.linalg.norm(colour[frame, here[j]] - colour[frame, i]))
                moved = _squash(np.array([*drift[row, j], approach]), d)
                values[8 * slot : 8 * slot + 8] = [*(gap[row, j] / d), far[row, j] / d, *moved, ratio, paint]
            out[i, frame, SLICES["nearest"]] = values
            rest = other[row]
            if not rest.any():
                continue
            quick = np.linalg.norm(speed[frame, here], axis=1)
            ranks = [(v[rest] < v[row]).mean() for v in (centre[frame, here, 0], centre[frame, here, 1])]
            ranks += [(v[rest] < v[row]).mean() for v in (area[frame, here], quick)]
            covered = min(float(inter[row][rest].sum()), 1.0)
            mean = [*(gap[row][rest].mean(0) / d * 2), *_squash(drift[row][rest].mean(0), d)]
            out[i, frame, SLICES["crowd"]] = [*mean, *ranks, covered]


def _boxes(box: Array) -> tuple[Array, Array]:
    """Share of each box that each other one covers, and IoU, both (K, K), from boxes (K, 4) x0 y0 x1 y1."""
    low = np.maximum(box[:, None, :2], box[None, :, :2])
    high = np.minimum(box[:, None, 2:], box[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(-1)
    size = np.maximum((box[:, 2:] - box[:, :2]).prod(-1), 1)
    return inter / size[:, None], inter / (size[:, None] + size[None] - inter)
