"""Dense optical flow between neighbouring frames and the camera's motion in it.

Letters: T frames, h w pixels at working resolution (1/step of the frame).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Reader = Callable[[int], NDArray[np.uint8]]
"""t -> (H, W, 3) uint8 RGB."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Motion of one video at working resolution.

    step: whole-number factor from frame pixels to working pixels;
    forward: float16 (T-1, h, w, 2), x and y pixels from frame t to t+1; backward: the same from t+1 to t;
    camera: float64 (T-1, 3, 3), homography that takes background points of frame t to frame t+1 (working pixels).
    """

    step: int
    size: tuple[int, int]
    forward: NDArray[np.float16]
    backward: NDArray[np.float16]
    camera: NDArray[np.float64]

    def flow(self, t: int, direction: int) -> NDArray[np.float32]:
        """float32 (h, w, 2) from frame t to t + direction (+1 or -1)."""
        stored = self.forward[t] if direction > 0 else self.backward[t - 1]
        return stored.astype(np.float32)

    def background(self, t: int, direction: int) -> NDArray[np.float64]:
        """Homography (3, 3) of the background from frame t to t + direction."""
        return self.camera[t] if direction > 0 else np.linalg.inv(self.camera[t - 1])


def work_step(size: tuple[int, int], shorter: int) -> int:
    """The factor that brings the shorter side of `size` (H, W) to about `shorter` pixels; 1 for small frames."""
    return max(1, round(min(size) / shorter))


def shrink(frame: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """(H, W, ...) to (ceil(H/step), ceil(W/step), ...), by area; pairs with mask[::step, ::step]."""
    if step == 1:
        return frame
    h, w = -(-frame.shape[0] // step), -(-frame.shape[1] // step)
    return np.asarray(cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA), np.uint8)


def measure(read: Reader, frames: int, step: int, preset: int = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM) -> Motion:
    """Flow of all neighbouring frames by DIS (Kroeger et al., 2016), and the camera's homographies."""
    solver = cv2.DISOpticalFlow.create(preset)
    before = cv2.cvtColor(shrink(read(0), step), cv2.COLOR_RGB2GRAY)
    h, w = before.shape
    # DIS works on patches of 8 pixels over a pyramid: frames below that get no flow, and no fault.
    tiny = min(h, w) < 16
    forward = np.zeros((frames - 1, h, w, 2), np.float16)
    backward = np.zeros((frames - 1, h, w, 2), np.float16)
    camera = np.tile(np.eye(3), (frames - 1, 1, 1))
    for t in range(frames - 1):
        after = cv2.cvtColor(shrink(read(t + 1), step), cv2.COLOR_RGB2GRAY)
        if not tiny:
            there = solver.calc(before, after, None)
            back = solver.calc(after, before, None)
            forward[t] = np.clip(there, -6e4, 6e4)
            backward[t] = np.clip(back, -6e4, 6e4)
            camera[t] = fit_camera(there, back)
        before = after
    return Motion(step, (h, w), forward, backward, camera)


def fit_camera(there: NDArray[np.float32], back: NDArray[np.float32]) -> NDArray[np.float64]:
    """Homography (3, 3) of the dominant motion in `there` (h, w, 2), by RANSAC on a grid of consistent points.

    A point counts when the flow `back` returns it to within a pixel. A homography that leaves more than half the
    points unexplained, or is close to degenerate, is replaced by the median translation.
    """
    h, w = there.shape[:2]
    grid = max(4, min(h, w) // 24)
    ys, xs = np.mgrid[grid // 2 : h : grid, grid // 2 : w : grid].reshape(2, -1)
    start = np.stack([xs, ys], 1).astype(np.float32)
    move = there[ys, xs]
    end = start + move
    x = np.clip(np.rint(end[:, 0]), 0, w - 1).astype(int)
    y = np.clip(np.rint(end[:, 1]), 0, h - 1).astype(int)
    inside = (end[:, 0] >= 0) & (end[:, 0] < w) & (end[:, 1] >= 0) & (end[:, 1] < h)
    good = inside & (np.abs(move + back[y, x]).max(1) < 1.0)
    fallback = np.eye(3)
    if not good.any():
        return fallback
    fallback[:2, 2] = np.median(move[good], axis=0)
    if good.sum() < 12:
        return fallback
    found, kept = cv2.findHomography(start[good], end[good], cv2.RANSAC, 1.0, maxIters=300, confidence=0.99)
    if found is None or kept.sum() < 0.4 * good.sum():
        return fallback
    corners = apply(found, np.array([[0, 0], [w, 0], [0, h], [w, h]], float))
    if np.abs(corners - [[0, 0], [w, 0], [0, h], [w, h]]).max() > 0.4 * max(h, w):
        return fallback
    return np.asarray(found, np.float64)


def apply(homography: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (K, 2) x y through a homography (3, 3)."""
    moved = points @ homography[:, :2].T + homography[:, 2]
    return np.asarray(moved[:, :2] / np.maximum(np.abs(moved[:, 2:]), 1e-6), np.float64)


def camera_field(homography: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """The displacement (h, w, 2) that a homography gives every pixel."""
    h, w = size
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float64)
    m = homography
    z = np.maximum(np.abs(m[2, 0] * xs + m[2, 1] * ys + m[2, 2]), 1e-6)
    dx = (m[0, 0] * xs + m[0, 1] * ys + m[0, 2]) / z - xs
    dy = (m[1, 0] * xs + m[1, 1] * ys + m[1, 2]) / z - ys
    return np.stack([dx, dy], -1).astype(np.float32)


def residual(motion: Motion, t: int) -> NDArray[np.float32]:
    """Length of the flow at frame t that the camera does not explain, (h, w) working pixels per frame.

    The median over the steps to t-2, t-1, t+1, t+2 that exist (a further step is halved), so that what one pair gets
    wrong, at occlusions above all, does not count.
    """
    frames = len(motion.forward) + 1
    maps = []
    for direction in (1, -1):
        if not 0 <= t + direction < frames:
            continue
        first = motion.flow(t, direction)
        field = camera_field(motion.background(t, direction), motion.size)
        maps.append(np.linalg.norm(first - field, axis=-1))
        if 0 <= t + 2 * direction < frames:
            second = sample(motion.flow(t + direction, direction), first)
            both = motion.background(t + direction, direction) @ motion.background(t, direction)
            far = first + second - camera_field(both, motion.size)
            maps.append(np.linalg.norm(far, axis=-1) / 2)
    if not maps:
        return np.zeros(motion.size, np.float32)
    return np.asarray(np.median(maps, axis=0), np.float32)


def sample(image: NDArray[np.float32], flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """`image` (h, w, ...) read at every pixel moved by `flow` (h, w, 2)."""
    h, w = flow.shape[:2]
    xs, ys = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    out = cv2.remap(image, xs + flow[..., 0], ys + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out, np.float32)
