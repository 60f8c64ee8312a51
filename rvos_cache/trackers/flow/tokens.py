"""Tokens of 256 numbers per track and frame, computed from masks, frames and flow alone.

A token describes its track in its frame: it contains no sums over time and nothing of other tracks; relations over time and
between objects are left to the selection module. Most numbers are soft bins: a quantity is spread over its two nearest bin
centres by linear interpolation, so that all parts of a token have a similar scale. The parts in GAINS are then multiplied,
because they have few or small values and a selection module starts with equal weights for all channels.

Coordinates: x to the right, y down, the frame's width and height each range from -1 to 1; D is the frame's diagonal and
s(v) = tanh(v / 0.02 D) compresses a speed in pixels per frame, so 0.02 D per frame (four pixels at 96x160) is 0.76.
Velocities are differences between the frames before and after (one-sided in the track's first and last visible frames), growth is
the slope over the three frames before and after.

Between two visible frames the position of a hidden track is interpolated linearly, and its size, shape and colour are those of
the last visible frame (before the first visible frame: of that frame); before the first and after the last visible frame it does
not move. Local flow and border contacts are 0 while it is hidden. A track that is never visible has zeros everywhere.

| part      | size | meaning |
|---|---|---|
| visible   | 2  | 1 when the mask has pixels; 1 when it has none |
| position  | 24 | centre: 12 bins of x, 12 of y, from -1 to 1 |
| velocity  | 30 | relative to the background (the camera's homography is subtracted frame by frame): 11 bins of s(vx), 11 of |
|           |    | s(vy), from -0.95 to 0.95; 8 bins of the speed s(|v|) from 0 to 0.95 |
| heading   | 8  | of the velocity: squared cosines to right, down-right, down ...; 0 below half a pixel per frame |
| screen    | 30 | as velocity, without subtracting the background |
| growth    | 11 | bins of tanh(g / 0.05) from -0.95 to 0.95, g the growth of the log area per frame |
| size      | 31 | 15 bins of the log share of the frame's area from -8 to -0.5; 8 bins each of the log shares of its width and |
|           |    | height, from -4 to 0 |
| shape     | 28 | log aspect ratio of the box; eccentricity times sin, cos of twice the orientation; eccentricity; 8 bins each |
|           |    | of solidity, circularity and share of the box, from 0.4 to 1 |
| ring      | 8  | magnitudes of Fourier terms 1..8 of the radius in 16 sectors (they do not change with orientation) |
| profile   | 8  | mean outline radius in 8 sectors over that of a disk of the same area, minus 1 |
| colour    | 36 | 12 bins each of the mean L, a, b from -0.9 to 0.9 |
| palette   | 16 | square roots of the shares of 12 hues and 4 greys |
| texture   | 6  | standard deviation of L, a, b (times 4); mean L, a, b minus those of the surround |
| flow      | 6  | local flow relative to the background: s of the mean x, y and std x, y; divergence and curl (tanh of 5x) |
| border    | 4  | whether the mask touches the frame's left, top, right, bottom |
| time      | 8  | bins of the frame's position in the video, from 0 (first) to 1 (last) |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.flow import motion as flows
from rvos_cache.trackers.flow import shape
from rvos_cache.trackers.flow.motion import Motion, Reader
from rvos_cache.trackers.flow.trajectory import Trajectory, growth, trajectory, velocity

CHANNELS = 256
PARTS = {
    "visible": 2, "position": 24, "velocity": 30, "heading": 8, "screen": 30, "growth": 11, "size": 31, "shape": 28,
    "ring": 8, "profile": 8, "colour": 36, "palette": 16, "texture": 6, "flow": 6, "border": 4, "time": 8,
}  # fmt: skip
_ends = np.cumsum(list(PARTS.values()))
SLICES = {name: slice(int(end) - size, int(end)) for (name, size), end in zip(PARTS.items(), _ends)}
"""Part name -> its channels."""
GAINS = {"heading": 2.0, "growth": 2.5, "ring": 2.0, "shape": 1.5, "time": 1.5}
"""Part name -> factor. Measured with SOLA on moving shapes: without the factor of growth, growing and shrinking are learned too
slowly; without that of heading, the direction of a circular motion is not learned."""

Array = NDArray[np.float64]


def describe(read: Reader, masks: RleMasks, motion: Motion | None = None) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Tokens float16 (N, T, 256) and presence float16 (N, T) of any masks (N, T) over the frames of a video.

    motion: of the same frames; measured from the frames that `read` returns if it is not given. Presence is 0 where a mask is
    empty, else between 0.5 and 1, increasing with its area relative to the track's median area.
    """
    n, t = masks.shape
    presence = _presence(areas(masks).astype(float))
    tokens = np.zeros((n, t, CHANNELS), np.float16)
    if n == 0:
        return tokens, presence
    if motion is None:
        motion = flows.measure(read, t, flows.work_step(masks.size, 240))
    _measure(masks, motion)
    for i in range(n):
        rows = np.stack([motion.arrays["measurements", frame][i] for frame in range(t)])
        tokens[i] = np.clip(np.nan_to_num(token(trajectory(rows, motion))), -4, 4)
    return tokens, presence


def areas(masks: RleMasks) -> NDArray[np.int32]:
    """Pixels of each mask (N, T), int32, one track at a time: `RleMasks.area` lists all masks of a video at once."""
    rows = [masks.select([k]).area()[0] for k in range(masks.shape[0])]
    return np.stack(rows) if rows else np.zeros(masks.shape, np.int32)


def _presence(area: Array) -> NDArray[np.float16]:
    out = np.zeros(area.shape)
    for i, row in enumerate(area):
        if row.any():
            out[i] = np.where(row > 0, 0.5 + 0.5 * np.clip(row / np.median(row[row > 0]), 0, 1), 0)
    return out.astype(np.float16)


def _measure(masks: RleMasks, motion: Motion) -> None:
    """Measure every mask in its frame; each frame's rows (N, WIDTH) go to `motion.arrays`, NaN where a mask is empty."""
    n, frames = masks.shape
    for t in range(frames):
        residual = np.zeros((*motion.size, 2), np.float32)
        if frames > 1:
            direction = 1 if t < frames - 1 else -1
            background = flows.camera_field(motion.background(t, direction), motion.size)
            residual = direction * (motion.flow(t, direction) - background)
        pixels = shape.pixels(motion.frame(t), residual)
        rows = np.full((n, shape.WIDTH), np.nan)
        for i in range(n):
            mask = masks.decode(i, t)[:: motion.step, :: motion.step]
            row = shape.measure(np.ascontiguousarray(mask, dtype=np.uint8), pixels)
            if row is not None:
                rows[i] = row
        motion.arrays["measurements", t] = rows


def token(track: Trajectory) -> Array:
    """The tokens (T, C) of one track, laid out as the table above."""
    out = np.zeros((len(track.visible), CHANNELS))
    if not track.visible.any():
        return out
    h, w = track.size
    d = track.diagonal
    visible = track.visible.astype(float)[:, None]
    position = (track.screen + 0.5) / [w, h] * 2 - 1
    extent = np.log(np.maximum((track.box[:, 2:] - track.box[:, :2]) / [w, h], 1e-6))
    world_velocity = velocity(track.world, track.first, track.last)
    gaps = np.stack([track.box[:, 0], track.box[:, 1], w - track.box[:, 2], h - track.box[:, 3]], 1)
    parts = {
        "visible": [visible, 1 - visible],
        "position": [bins(position[:, k], -1, 1, 12) for k in (0, 1)],
        "velocity": _velocity_bins(world_velocity, d),
        "heading": [_heading(world_velocity)],
        "screen": _velocity_bins(velocity(track.screen, track.first, track.last), d),
        "growth": [bins(np.tanh(growth(track.area, track.first, track.last) / 0.05), -0.95, 0.95, 11)],
        "size": [bins(np.log(track.area / (h * w)), -8, -0.5, 15), *(bins(extent[:, k], -4, 0, 8) for k in (0, 1))],
        "shape": [track.shape[:, :4], *(bins(track.shape[:, k], 0.4, 1, 8) for k in (4, 5, 6))],
        "ring": [np.abs(np.fft.rfft(track.profile, axis=1))[:, 1:9] / 2],
        "profile": [np.clip(track.profile, -1, 2).reshape(-1, 8, 2).mean(2)],
        "colour": [bins(track.colour[:, k], -0.9, 0.9, 12) for k in range(3)],
        "palette": [np.sqrt(track.histogram)],
        "texture": [track.colour[:, 3:]],
        "flow": [_compress(track.flow[:, :4], d) * visible, np.tanh(5 * track.flow[:, 4:]) * visible],
        "border": [(gaps < 1.5) * visible],
        "time": [bins(np.linspace(0, 1, len(visible)), 0, 1, 8)],
    }
    for name, channels in SLICES.items():
        out[:, channels] = np.concatenate(parts[name], 1) * GAINS.get(name, 1.0)
    return out


def mirrored(tokens: NDArray[np.float16]) -> NDArray[np.float16]:
    """The tokens (N, T, 256) of the same tracks in frames flipped from left to right."""
    order, sign = np.arange(CHANNELS), np.ones(CHANNELS, np.float16)

    def reorder(part: str, first: int, channels: Sequence[int]) -> None:
        start = SLICES[part].start + first
        order[start : start + len(channels)] = start + np.array(channels)

    reorder("position", 0, range(11, -1, -1))
    for part in ("velocity", "screen"):
        reorder(part, 0, range(10, -1, -1))
    reorder("heading", 0, [(4 - k) % 8 for k in range(8)])
    # Sector k covers the angles from k to k + 1 eighths of a full circle.
    reorder("profile", 0, [(3 - k) % 8 for k in range(8)])
    reorder("border", 0, [2, 1, 0, 3])
    sign[SLICES["shape"].start + 1] = -1  # the sine of twice the orientation
    sign[[SLICES["flow"].start, SLICES["flow"].start + 5]] = -1  # the mean x, and the curl
    return np.asarray(tokens[..., order] * sign, np.float16)


def bins(value: Array, low: float, high: float, count: int) -> Array:
    """Soft bins (T, count) of `value` (T,) clipped to [low, high]: linear interpolation between evenly spaced centres."""
    position = (np.clip(value, low, high) - low) / (high - low) * (count - 1)
    return np.asarray(np.clip(1 - np.abs(position[:, None] - np.arange(count)), 0, 1), np.float64)


def _velocity_bins(v: Array, diagonal: float) -> list[Array]:
    """Bins of x, y and speed of a velocity (T, 2) in working pixels per frame."""
    x, y = _compress(v, diagonal).T
    speed = np.linalg.norm(v, axis=1)
    return [bins(x, -0.95, 0.95, 11), bins(y, -0.95, 0.95, 11), bins(_compress(speed, diagonal), 0, 0.95, 8)]


def _heading(v: Array) -> Array:
    """Squared cosines (T, 8) of the angles between a velocity (T, 2) and eight directions."""
    angle = np.arctan2(v[:, 1], v[:, 0])[:, None] - np.arange(8) * np.pi / 4
    # Below about half a pixel per frame a direction is noise.
    return np.asarray(np.clip(np.cos(angle), 0, 1) ** 2 * np.tanh((np.linalg.norm(v, axis=1) / 0.5) ** 2)[:, None], np.float64)


def _compress(value: Array, diagonal: float) -> Array:
    return np.tanh(value / (0.02 * diagonal))
