"""Mode "full": soft masks propagated from frame to frame by a similarity fitted to the flow inside them, and by appearance.

Letters: N prompts, T frames, h w pixels at working resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.trackers.base import ShareDone, no_progress, part_of
from rvos_cache.trackers.flow.appearance import Fourier, Ridge, pixel_inputs
from rvos_cache.trackers.flow.mask_frames import FrameMask, MaskFrames
from rvos_cache.trackers.flow.motion import Motion

CROP_PIXELS = 12000
"""Crops with more pixels than this are classified on every second pixel of each axis."""
LOST_SCORE = -0.35
"""Mean classifier score inside the mask below which the track is doubtful."""
LOST_FRAMES = 3
"""Number of doubtful frames in a row after which a track is lost."""

Window = tuple[int, int, int, int]
"""y0, y1, x0, x1 of a crop."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A region to propagate: mask bool (h, w) in frame `start`, and the classifier trained on that frame."""

    mask: NDArray[np.bool_]
    start: int
    model: Ridge


@dataclass(frozen=True, eq=False)
class Frame:
    """What propagation reads of one frame: inputs float16 (h, w, 8) of the classifier; grey float32 (h, w) in [0, 1]."""

    inputs: NDArray[np.float16]
    grey: NDArray[np.float32]

    @classmethod
    def of(cls, frame: NDArray[np.uint8]) -> Frame:
        """From a frame (h, w, 3) RGB."""
        return cls(pixel_inputs(frame), cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255)


@dataclass(eq=False)
class Cursor:
    """A track at the current frame.

    crop: its soft mask float32 inside `window`, 0 outside; model: its classifier; doubt: consecutive doubtful frames.
    """

    crop: NDArray[np.float32]
    window: Window
    model: Ridge
    doubt: int = 0

    def soft(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """The soft mask of the whole frame (h, w)."""
        out = np.zeros(size, np.float32)
        y0, y1, x0, x1 = self.window
        out[y0:y1, x0:x1] = self.crop
        return out


class Propagator:
    """Propagates the prompts of one video through all its frames."""

    def __init__(self, motion: Motion, seed: int) -> None:
        self.motion = motion
        self.fourier = Fourier(seed)

    def prompt(self, mask: NDArray[np.bool_], start: int, frame: Frame) -> Prompt:
        """A prompt, its classifier trained on the mask and its surround."""
        window = self._window(cv2.boundingRect(mask.astype(np.uint8)), np.zeros(2))
        stride = _stride(window)
        y0, y1, x0, x1 = window
        inputs = frame.inputs[y0:y1:stride, x0:x1:stride].reshape(-1, frame.inputs.shape[-1])
        inside = mask[y0:y1:stride, x0:x1:stride].reshape(-1).astype(np.float32)
        return Prompt(mask, start, Ridge(self.fourier(inputs), inside))

    def run(self, prompts: Sequence[Prompt], progress: ShareDone = no_progress) -> tuple[MaskFrames, NDArray[np.float64]]:
        """Masks (N, T) and confidence (N, T) in [0, 1], 0 where a track is lost.

        All tracks are propagated together, once forward and once backward through the video, so that each direction reads every
        frame once and memory does not grow with the number of frames. Tracks do not influence each other.
        """
        frames = self.motion.frames
        masks = MaskFrames(self.motion.arrays, len(prompts), self.motion.size)
        confidence = np.zeros((len(prompts), frames))
        for n, prompt in enumerate(prompts):
            confidence[n, prompt.start] = 1
        for t in sorted({prompt.start for prompt in prompts}):
            whole = (0, self.motion.size[0], 0, self.motion.size[1])
            masks.write(t, 0, [FrameMask(n, whole, p.mask) for n, p in enumerate(prompts) if p.start == t])
        for direction in (1, -1):
            part = part_of(progress, 0.0, 0.5) if direction > 0 else part_of(progress, 0.5, 1.0)
            self._sweep(prompts, direction, masks, confidence, part)
        return masks, confidence

    def _sweep(
        self,
        prompts: Sequence[Prompt],
        direction: int,
        masks: MaskFrames,
        confidence: NDArray[np.float64],
        progress: ShareDone,
    ) -> None:
        """Propagate every prompt in one direction of time; writes into `masks` and `confidence`."""
        frames, size = self.motion.frames, self.motion.size
        cursors: dict[int, Cursor] = {}
        for count, t in enumerate(range(frames)[::direction]):
            progress(count / frames)
            if cursors:
                flow, frame = self.motion.flow(t - direction, direction), Frame.of(self.motion.frame(t))
                visible = []
                for n, cursor in list(cursors.items()):
                    score = self.step(cursor, flow, frame)
                    if score is None:
                        del cursors[n]
                    else:
                        confidence[n, t] = score
                        visible.append(FrameMask(n, cursor.window, cursor.crop > 0.5))
                masks.write(t, direction, visible)
            for n, prompt in enumerate(prompts):
                if prompt.start == t:
                    soft = cv2.GaussianBlur(prompt.mask.astype(np.float32), (0, 0), 0.7)
                    cursors[n] = Cursor(soft, (0, size[0], 0, size[1]), prompt.model.copy())

    def step(self, cursor: Cursor, flow: NDArray[np.float32], frame: Frame) -> float | None:
        """Move `cursor` along `flow` (h, w, 2) into the next frame. Returns its confidence there, or None if it is lost."""
        soft = cursor.soft(self.motion.size)
        hard = (soft > 0.5).astype(np.uint8)
        if int(hard.sum()) < 12:
            return None
        ys, xs = np.nonzero(hard)
        pick = slice(None, None, max(1, len(ys) // 400))
        moves = flow[ys[pick], xs[pick]]
        matrix = similarity(np.stack([xs[pick], ys[pick]], 1).astype(np.float32), moves)
        window = self._window(cv2.boundingRect(hard), np.median(moves, axis=0))
        y0, y1, x0, x1 = window
        if y1 - y0 < 4 or x1 - x0 < 4:
            return None
        prior = _warp(soft, matrix, window)
        if (prior > 0.5).sum() < 8:
            return None
        stride = _stride(window)
        inputs = frame.inputs[y0:y1:stride, x0:x1:stride]
        features = self.fourier(inputs.reshape(-1, inputs.shape[-1]))
        score = cursor.model.score(features).reshape(inputs.shape[:2])
        fused = _fuse(prior, _resize(score, prior.shape), frame.grey[y0:y1, x0:x1])
        growth = float((fused > 0.5).sum()) / float((prior > 0.5).sum())
        if not 0.6 < growth < 1.6:
            fused = (0.75 * prior + 0.25 * fused).astype(np.float32)
        membership = fused[::stride, ::stride]
        inside = membership > 0.5
        level = float(score[inside].mean()) if inside.any() else -1.0
        cursor.doubt = cursor.doubt + 1 if level < LOST_SCORE else 0
        if cursor.doubt >= LOST_FRAMES:
            return None
        if level > 0:
            cursor.model.update(features, membership.reshape(-1))
        cursor.crop, cursor.window = fused, window
        return float(np.clip(0.55 + 0.5 * level, 0.05, 1))

    def _window(self, box: Sequence[int], move: NDArray[Any]) -> Window:
        """The crop around a box (x, y, w, h) that moves by `move` (x, y), clipped to the frame."""
        x, y, w, h = box
        pad = int(max(12, 0.35 * max(w, h)))
        height, width = self.motion.size
        dx, dy = round(float(move[0])), round(float(move[1]))
        y0, x0 = np.clip(y + dy - pad, 0, height), np.clip(x + dx - pad, 0, width)
        return int(y0), int(np.clip(y + dy + h + pad, 0, height)), int(x0), int(np.clip(x + dx + w + pad, 0, width))


def _stride(window: Window) -> int:
    """Step between the pixels of a crop that are classified: 1, 2 or 3."""
    y0, y1, x0, x1 = window
    pixels = (y1 - y0) * (x1 - x0)
    return 1 + int(pixels > CROP_PIXELS) + int(pixels > 4 * CROP_PIXELS)


def _fuse(prior: NDArray[np.float32], score: NDArray[np.float32], grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Soft mask from the prior, the signed distance to its outline and the classifier's score, aligned to edges of the frame."""
    hard = (prior > 0.5).astype(np.uint8)
    inner = cv2.distanceTransform(np.pad(hard, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    outer = cv2.distanceTransform(1 - hard, cv2.DIST_L2, 3)
    reach = max(3.0, 0.12 * float(np.sqrt(hard.sum())))
    distance = np.clip((inner - outer) / reach, -2.0, 2.0)
    logit = 1.6 * np.clip(score, -1, 1) + 1.3 * distance + 1.2 * (2 * prior - 1)
    probability = 1 / (1 + np.exp(-1.6 * logit))
    smooth = guided(grey, probability.astype(np.float32), 4, 2e-3)
    return np.asarray(np.clip((smooth - 0.5) * 1.3 + 0.5, 0, 1), np.float32)


def _resize(score: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if score.shape == shape:
        return score
    return np.asarray(cv2.resize(score, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32)


def _warp(soft: NDArray[np.float32], matrix: NDArray[np.float64], window: Window) -> NDArray[np.float32]:
    """The soft mask (h, w) moved by a similarity (2, 3), inside `window`.

    A warp by the dense flow itself, even in part, frays the outline at every occlusion.
    """
    y0, y1, x0, x1 = window
    shifted = matrix.copy()
    shifted[:, 2] -= [x0, y0]
    return np.asarray(cv2.warpAffine(soft, shifted, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR), np.float32)


def similarity(points: NDArray[np.float32], moves: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rotation, scale and translation (2, 3) that best carry points (K, 2) along moves (K, 2); two rounds drop outliers.

    Scale is limited to 0.8 .. 1.2 and rotation to 0.2 rad per frame: larger values are errors of the flow.
    """
    keep = np.ones(len(points), bool)
    matrix = np.eye(2, 3)
    for _ in range(3):
        a, b = points[keep].astype(float), (points + moves)[keep].astype(float)
        ca, cb = a.mean(0), b.mean(0)
        da, db = a - ca, b - cb
        spread = float((da * da).sum())
        c, s = 1.0, 0.0
        if spread > 1:
            c = float((da * db).sum()) / spread
            s = float((da[:, 0] * db[:, 1] - da[:, 1] * db[:, 0]).sum()) / spread
            scale = float(np.clip(np.hypot(c, s), 0.8, 1.2))
            angle = float(np.clip(np.arctan2(s, c), -0.2, 0.2))
            c, s = scale * np.cos(angle), scale * np.sin(angle)
        matrix[:, :2] = [[c, -s], [s, c]]
        matrix[:, 2] = cb - matrix[:, :2] @ ca
        error = np.linalg.norm(points @ matrix[:, :2].T + matrix[:, 2] - points - moves, axis=1)
        keep = error <= max(1.0, 1.4 * float(np.median(error)))
        if keep.sum() < 4:
            break
    return matrix


def guided(guide: NDArray[np.float32], image: NDArray[np.float32], radius: int, eps: float) -> NDArray[np.float32]:
    """Guided filter of `image` by a grey `guide`, both (a, b), by box means.

    He et al., "Guided Image Filtering", ECCV 2010, algorithm 1.
    """
    size = (2 * radius + 1, 2 * radius + 1)
    mean_g, mean_i = cv2.blur(guide, size), cv2.blur(image, size)
    cov = cv2.blur(guide * image, size) - mean_g * mean_i
    var = cv2.blur(guide * guide, size) - mean_g * mean_g
    a = cov / (var + eps)
    b = mean_i - a * mean_g
    return np.asarray(cv2.blur(a, size) * guide + cv2.blur(b, size), np.float32)
