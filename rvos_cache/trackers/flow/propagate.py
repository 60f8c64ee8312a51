"""Real video: soft masks carried from frame to frame by a similarity fitted to the flow inside them, and by appearance.

Letters: T frames, h w working pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.trackers.flow.appearance import Fourier, Ridge
from rvos_cache.trackers.flow.motion import Motion

CROP_PIXELS = 12000
"""Crops with more pixels than this are classified on every second pixel of each axis."""
LOST_SCORE = -0.35
"""Mean classifier score inside the mask below which the object counts as lost."""


@dataclass(eq=False)
class Cursor:
    """One track at one frame: soft mask float32 (h, w), its classifier, frames it has been doubtful, or lost."""

    soft: NDArray[np.float32]
    model: Ridge
    doubt: int = 0
    lost: bool = False


class Propagator:
    """Carries masks through one video. inputs: (h, w, 8) per frame; grey: float32 (h, w) per frame in [0, 1]."""

    def __init__(
        self, motion: Motion, inputs: Sequence[NDArray[np.float16]], grey: Sequence[NDArray[np.float32]], seed: int
    ) -> None:
        self.motion, self.inputs, self.grey = motion, inputs, grey
        self.frames = len(inputs)
        self.fourier = Fourier(seed)

    def run(self, prompts: Sequence[NDArray[np.bool_]], start: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Masks packed by np.packbits (K, T, h, ceil(w / 8)) and confidence (K, T) in [0, 1] of prompts K x (h, w) in `start`."""
        h, w = self.motion.size
        masks = np.zeros((len(prompts), self.frames, h, -(-w // 8)), np.uint8)
        sure = np.zeros((len(prompts), self.frames))
        first = [self.open(p, start) for p in prompts]
        for k, prompt in enumerate(prompts):
            masks[k, start], sure[k, start] = np.packbits(prompt, axis=-1), 1
        for direction in (1, -1):
            cursors = [Cursor(c.soft, c.model.copy()) for c in first]
            t = start
            while 0 <= t + direction < self.frames and not all(c.lost for c in cursors):
                there = self.motion.flow(t, direction)
                for k, cursor in enumerate(cursors):
                    if not cursor.lost:
                        sure[k, t + direction] = self.step(cursor, there, t + direction)
                        masks[k, t + direction] = np.packbits(cursor.soft > 0.5, axis=-1)
                t += direction
        return masks, sure

    def open(self, prompt: NDArray[np.bool_], t: int) -> Cursor:
        """A cursor on a prompt, its classifier trained on the prompt and its surround."""
        soft = cv2.GaussianBlur(prompt.astype(np.float32), (0, 0), 0.7)
        y0, y1, x0, x1 = self._window(cv2.boundingRect(prompt.astype(np.uint8)), np.zeros(2))
        stride = self._stride(y0, y1, x0, x1)
        inputs = self.inputs[t][y0:y1:stride, x0:x1:stride].reshape(-1, self.inputs[t].shape[-1])
        inside = prompt[y0:y1:stride, x0:x1:stride].reshape(-1).astype(np.float32)
        return Cursor(soft, Ridge(self.fourier(inputs), inside))

    def step(self, cursor: Cursor, there: NDArray[np.float32], t: int) -> float:
        """Move `cursor` into frame t; `there` is the flow that leads to it. Its confidence."""
        hard = (cursor.soft > 0.5).astype(np.uint8)
        area = int(hard.sum())
        if area < 12:
            return self._lose(cursor)
        ys, xs = np.nonzero(hard)
        pick = slice(None, None, max(1, len(ys) // 400))
        moves = there[ys[pick], xs[pick]]
        matrix = similarity(np.stack([xs[pick], ys[pick]], 1).astype(np.float32), moves)
        y0, y1, x0, x1 = self._window(cv2.boundingRect(hard), np.median(moves, axis=0))
        if y1 - y0 < 4 or x1 - x0 < 4:
            return self._lose(cursor)
        prior = _moved(cursor.soft, matrix, (y0, y1, x0, x1))
        if (prior > 0.5).sum() < 8:
            return self._lose(cursor)
        stride = self._stride(y0, y1, x0, x1)
        block = self.inputs[t][y0:y1:stride, x0:x1:stride]
        features = self.fourier(block.reshape(-1, block.shape[-1]))
        score = cursor.model.score(features).reshape(block.shape[:2])
        fused = self._fuse(prior, _resize(score, prior.shape), self.grey[t][y0:y1, x0:x1])
        grown = float((fused > 0.5).sum()) / float((prior > 0.5).sum())
        if not 0.6 < grown < 1.6:
            fused = (0.75 * prior + 0.25 * fused).astype(np.float32)
        inside = fused[::stride, ::stride]
        hold = inside > 0.5
        level = float(score[hold].mean()) if hold.any() else -1.0
        cursor.doubt = cursor.doubt + 1 if level < LOST_SCORE else 0
        if cursor.doubt >= 3:
            return self._lose(cursor)
        if level > 0:
            cursor.model.update(features, inside.reshape(-1))
        cursor.soft = np.zeros_like(cursor.soft)
        cursor.soft[y0:y1, x0:x1] = fused
        return float(np.clip(0.55 + 0.5 * level, 0.05, 1))

    def _lose(self, cursor: Cursor) -> float:
        cursor.lost = True
        cursor.soft = np.zeros_like(cursor.soft)
        return 0.0

    def _fuse(self, prior: NDArray[np.float32], score: NDArray[np.float32], grey: NDArray[np.float32]) -> NDArray[np.float32]:
        """Soft mask from the prior, the signed distance to its outline and the classifier; follows the picture's edges."""
        hard = (prior > 0.5).astype(np.uint8)
        inner = cv2.distanceTransform(np.pad(hard, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        outer = cv2.distanceTransform(1 - hard, cv2.DIST_L2, 3)
        reach = max(3.0, 0.12 * float(np.sqrt(hard.sum())))
        distance = np.clip((inner - outer) / reach, -2.0, 2.0)
        logit = 1.6 * np.clip(score, -1, 1) + 1.3 * distance + 1.2 * (2 * prior - 1)
        probability = 1 / (1 + np.exp(-1.6 * logit))
        smooth = guided(grey, probability.astype(np.float32), 4, 2e-3)
        return np.asarray(np.clip((smooth - 0.5) * 1.3 + 0.5, 0, 1), np.float32)

    def _window(self, box: Sequence[int], move: NDArray[Any]) -> tuple[int, int, int, int]:
        x, y, w, h = box
        pad = int(max(12, 0.35 * max(w, h)))
        height, width = self.motion.size
        dx, dy = round(float(move[0])), round(float(move[1]))
        y0, x0 = np.clip(y + dy - pad, 0, height), np.clip(x + dx - pad, 0, width)
        return int(y0), int(np.clip(y + dy + h + pad, 0, height)), int(x0), int(np.clip(x + dx + w + pad, 0, width))

    def _stride(self, y0: int, y1: int, x0: int, x1: int) -> int:
        return 1 + int((y1 - y0) * (x1 - x0) > CROP_PIXELS) + int((y1 - y0) * (x1 - x0) > 4 * CROP_PIXELS)


def _resize(score: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if score.shape == shape:
        return score
    return np.asarray(cv2.resize(score, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32)


def _moved(soft: NDArray[np.float32], matrix: NDArray[np.float64], window: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Where the mask should be, inside y0 y1 x0 x1. A warp by the flow itself, even in part, frays at every occlusion."""
    y0, y1, x0, x1 = window
    shifted = matrix.copy()
    shifted[:, 2] -= [x0, y0]
    return np.asarray(cv2.warpAffine(soft, shifted, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR), np.float32)


def similarity(points: NDArray[np.float32], moves: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rotation, scale and shift (2, 3) that best carry points (K, 2) along moves (K, 2); two rounds drop the worst.

    Scale is kept within 0.8 .. 1.2 and turning within 0.2 per frame: more is a fault of the flow.
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
            size = float(np.clip(np.hypot(c, s), 0.8, 1.2))
            turn = float(np.clip(np.arctan2(s, c), -0.2, 0.2))
            c, s = size * np.cos(turn), size * np.sin(turn)
        matrix[:, :2] = [[c, -s], [s, c]]
        matrix[:, 2] = cb - matrix[:, :2] @ ca
        miss = np.linalg.norm(points @ matrix[:, :2].T + matrix[:, 2] - points - moves, axis=1)
        keep = miss <= max(1.0, 1.4 * float(np.median(miss)))
        if keep.sum() < 4:
            break
    return matrix


def guided(guide: NDArray[np.float32], image: NDArray[np.float32], radius: int, eps: float) -> NDArray[np.float32]:
    """Guided filter (He et al., 2010) of `image` by a grey `guide`, both (a, b), by box means."""
    size = (2 * radius + 1, 2 * radius + 1)
    mean_g, mean_i = cv2.blur(guide, size), cv2.blur(image, size)
    cov = cv2.blur(guide * image, size) - mean_g * mean_i
    var = cv2.blur(guide * guide, size) - mean_g * mean_g
    a = cov / (var + eps)
    b = mean_i - a * mean_g
    return np.asarray(cv2.blur(a, size) * guide + cv2.blur(b, size), np.float32)
