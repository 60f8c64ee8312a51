"""Dense optical flow between neighbouring frames and the camera motion in it.

Letters: T frames, h w pixels at working resolution (1/step of the frame).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.trackers.spool import ArraySpool

Reader = Callable[[int], NDArray[np.uint8]]
"""t -> (H, W, 3) uint8 RGB."""
IN_MEMORY = 1 << 24
"""Bytes of frames, flow and masks of a video that are kept in memory; the rest is kept in a temporary file."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Frames and motion of one video at working resolution.

    step: integer factor from frame pixels to working pixels; size: (h, w); frames: T;
    camera: float64 (T-1, 3, 3), homography that takes background points of frame t to frame t+1 (working pixels);
    arrays: the shrunk frames and their flow, and whatever else the tracker keeps per frame.
    """

    step: int
    size: tuple[int, int]
    frames: int
    camera: NDArray[np.float64]
    arrays: ArraySpool

    def frame(self, t: int) -> NDArray[np.uint8]:
        """Frame t, uint8 (h, w, 3) RGB, read-only."""
        return self.arrays["frame", t]

    def flow(self, t: int, direction: int) -> NDArray[np.float32]:
        """float32 (h, w, 2), x and y displacement in pixels from frame t to frame t + direction (+1 or -1)."""
        return self.arrays["flow", t, direction].astype(np.float32)

    def background(self, t: int, direction: int) -> NDArray[np.float64]:
        """Homography (3, 3) of the background from frame t to t + direction."""
        return self.camera[t] if direction > 0 else np.linalg.inv(self.camera[t - 1])


def work_step(size: tuple[int, int], shorter: int) -> int:
    """The factor that brings the shorter side of `size` (H, W) to about `shorter` pixels; 1 for small frames."""
    return max(1, round(min(size) / shorter))


def shrink(frame: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """(H, W, ...) to (ceil(H/step), ceil(W/step), ...), by area averaging; matches mask[::step, ::step]."""
    if step == 1:
        return frame
    h, w = -(-frame.shape[0] // step), -(-frame.shape[1] // step)
    return np.asarray(cv2.resize(frame, (w, h), interpolation=cv2.INTER_AREA), np.uint8)


def measure(read: Reader, frames: int, step: int, in_memory: int = IN_MEMORY) -> Motion:
    """The flow between all neighbouring frames and the homographies of the camera; each frame is read once.

    Flow: DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016), OpenCV's medium preset.
    """
    solver = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    arrays = ArraySpool(in_memory)
    camera = np.tile(np.eye(3), (frames - 1, 1, 1))
    previous: NDArray[np.uint8] | None = None
    size = (0, 0)
    for t in range(frames):
        frame = shrink(read(t), step)
        arrays["frame", t] = frame
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if previous is None:
            size = (grey.shape[0], grey.shape[1])
        # DIS works on patches of 8 pixels over a pyramid: smaller frames get zero flow instead of an OpenCV error.
        elif min(size) < 16:
            arrays["flow", t - 1, 1] = arrays["flow", t, -1] = np.zeros((*size, 2), np.float16)
        else:
            forward, backward = solver.calc(previous, grey, None), solver.calc(grey, previous, None)
            arrays["flow", t - 1, 1] = np.clip(forward, -6e4, 6e4).astype(np.float16)
            arrays["flow", t, -1] = np.clip(backward, -6e4, 6e4).astype(np.float16)
            camera[t - 1] = fit_camera(forward, backward)
        previous = grey
    return Motion(step, size, frames, camera, arrays)


def fit_camera(forward: NDArray[np.float32], backward: NDArray[np.float32]) -> NDArray[np.float64]:
    """Homography (3, 3) of the dominant motion in `forward` (h, w, 2), by RANSAC on a grid of consistent points.

    A point is consistent if the flow `backward` returns it to within a pixel. A homography that explains less than 40% of the
    points, or is close to degenerate, is replaced by the median translation.
    """
    h, w = forward.shape[:2]
    grid = max(4, min(h, w) // 24)
    ys, xs = np.mgrid[grid // 2 : h : grid, grid // 2 : w : grid].reshape(2, -1)
    start = np.stack([xs, ys], 1).astype(np.float32)
    displacement = forward[ys, xs]
    end = start + displacement
    x = np.clip(np.rint(end[:, 0]), 0, w - 1).astype(int)
    y = np.clip(np.rint(end[:, 1]), 0, h - 1).astype(int)
    inside = (end[:, 0] >= 0) & (end[:, 0] < w) & (end[:, 1] >= 0) & (end[:, 1] < h)
    consistent = inside & (np.abs(displacement + backward[y, x]).max(1) < 1.0)
    translation = np.eye(3)
    if not consistent.any():
        return translation
    translation[:2, 2] = np.median(displacement[consistent], axis=0)
    if consistent.sum() < 12:
        return translation
    homography, inliers = cv2.findHomography(start[consistent], end[consistent], cv2.RANSAC, 1.0, maxIters=300, confidence=0.99)
    if homography is None or inliers.sum() < 0.4 * consistent.sum():
        return translation
    corners = np.array([[0, 0], [w, 0], [0, h], [w, h]], float)
    if np.abs(apply(homography, corners) - corners).max() > 0.4 * max(h, w):
        return translation
    return np.asarray(homography, np.float64)


def apply(homography: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (K, 2) x y through a homography (3, 3)."""
    moved = points @ homography[:, :2].T + homography[:, 2]
    return np.asarray(moved[:, :2] / np.maximum(np.abs(moved[:, 2:]), 1e-6), np.float64)


def camera_field(homography: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float32]:
    """The displacement (h, w, 2) of every pixel by a homography."""
    h, w = size
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float64)
    m = homography
    z = np.maximum(np.abs(m[2, 0] * xs + m[2, 1] * ys + m[2, 2]), 1e-6)
    dx = (m[0, 0] * xs + m[0, 1] * ys + m[0, 2]) / z - xs
    dy = (m[1, 0] * xs + m[1, 1] * ys + m[1, 2]) / z - ys
    return np.stack([dx, dy], -1).astype(np.float32)


def residual_speed(motion: Motion, t: int) -> NDArray[np.float32]:
    """Length (h, w) of the flow at frame t without the camera motion, in working pixels per frame.

    The median over the steps to t-2, t-1, t+1, t+2 that exist (a step of two frames is halved), so that an error in one pair, as
    at occlusions, has little effect.
    """
    lengths = []
    for direction in (1, -1):
        if not 0 <= t + direction < motion.frames:
            continue
        first = motion.flow(t, direction)
        field = camera_field(motion.background(t, direction), motion.size)
        lengths.append(np.linalg.norm(first - field, axis=-1))
        if 0 <= t + 2 * direction < motion.frames:
            second = sample(motion.flow(t + direction, direction), first)
            background = motion.background(t + direction, direction) @ motion.background(t, direction)
            residual = first + second - camera_field(background, motion.size)
            lengths.append(np.linalg.norm(residual, axis=-1) / 2)
    if not lengths:
        return np.zeros(motion.size, np.float32)
    return np.asarray(np.median(lengths, axis=0), np.float32)


def sample(image: NDArray[np.float32], flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """`image` (h, w, ...) sampled at every pixel displaced by `flow` (h, w, 2), bilinearly."""
    h, w = flow.shape[:2]
    xs, ys = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    out = cv2.remap(image, xs + flow[..., 0], ys + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out, np.float32)
