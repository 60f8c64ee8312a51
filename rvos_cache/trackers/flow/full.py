"""Real video: key frames, their prompts, propagation, and what is kept."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.flow import motion as flows
from rvos_cache.trackers.flow.appearance import pixel_inputs
from rvos_cache.trackers.flow.propagate import Propagator
from rvos_cache.trackers.flow.proposals import cues, propose
from rvos_cache.trackers.flow.settings import FlowSettings
from rvos_cache.types import Video


def key_frames(frames: int, count: int) -> list[int]:
    """`count` frames in the middles of equal parts of the video, those nearest to its middle first."""
    spread = sorted({int((i + 0.5) * frames / count) for i in range(count)})
    return sorted(spread, key=lambda t: (abs(t - (frames - 1) / 2), t))


@dataclass(frozen=True, eq=False)
class Pool:
    """Every propagated prompt: packed uint8 (N, T, h, ceil(w / 8)), masks by np.packbits; sure float64 (N, T) in [0, 1], 0 where
    lost; starts int32 (N,), prompt frames."""

    packed: NDArray[np.uint8]
    sure: NDArray[np.float64]
    starts: NDArray[np.int32]


def full_tracks(
    video: Video, motion: flows.Motion, settings: FlowSettings
) -> tuple[RleMasks, NDArray[np.float64], NDArray[np.int32]]:
    """Masks (N, T) in frame pixels, confidence (N, T) and prompt frames (N,), N at most `max_tracks`."""
    frames = len(video)
    pool = _propagated(video, motion, settings)
    n = len(pool.starts)
    if n == 0:
        return RleMasks.empty(0, frames, video.size), np.zeros((0, frames)), np.zeros(0, np.int32)
    pairs = overlaps(pool.packed, motion.size[1])
    own = np.repeat(np.arange(n)[:, None], frames, 1)
    sources = np.concatenate([own, stitch(pairs, pool.starts, settings.stitch_iou)])
    sure = pool.sure[sources, np.arange(frames)]
    # A classifier that stays sure of an object in every frame is the best sign of a track that holds; own tracks win ties.
    order = np.argsort(-sure.mean(1), kind="stable")
    kept = distinct(pairs, sources, sure > 0, order, settings.duplicate_iou, settings.max_tracks)
    masks = _encode(pool.packed, sources[kept], motion.size, video.size)
    return masks, sure[kept], pool.starts[kept % n]


def _propagated(video: Video, motion: flows.Motion, settings: FlowSettings) -> Pool:
    frames, step = len(video), motion.step
    small = [flows.shrink(video.read(t), step) for t in range(frames)]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255 for frame in small]
    propagator = Propagator(motion, [pixel_inputs(frame) for frame in small], grey, settings.seed)
    packed = [np.zeros((0, frames, motion.size[0], -(-motion.size[1] // 8)), np.uint8)]
    sure, starts = [np.zeros((0, frames))], [np.zeros(0, np.int32)]
    for t in key_frames(frames, settings.key_frames):
        found = cues(small[t], _residual_move(motion, t, frames), flows.residual(motion, t))
        prompts = [p for _, p in propose(small[t], found, settings.prompts_per_key)]
        if prompts:
            more, trust = propagator.run(prompts, t)
            packed.append(more)
            sure.append(trust)
            starts.append(np.full(len(prompts), t, np.int32))
    return Pool(np.concatenate(packed), np.concatenate(sure), np.concatenate(starts))


def _residual_move(motion: flows.Motion, t: int, frames: int) -> NDArray[np.float32]:
    """Flow (h, w, 2) of frame t that the camera does not explain."""
    if frames == 1:
        return np.zeros((*motion.size, 2), np.float32)
    direction = 1 if t < frames - 1 else -1
    field = motion.flow(t, direction) - flows.camera_field(motion.background(t, direction), motion.size)
    planes = [cv2.medianBlur(np.ascontiguousarray(direction * field[..., k]), 5) for k in (0, 1)]
    return np.stack(planes, -1).astype(np.float32)


def overlaps(packed: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """IoU (T, N, N) of packed masks (N, T, h, ceil(width / 8)), on every third pixel of each axis; 0 where both are empty."""
    n, frames = packed.shape[:2]
    out = np.zeros((frames, n, n), np.float32)
    for t in range(frames):
        thin = np.unpackbits(packed[:, t, ::3], axis=-1, count=width)[..., ::3].reshape(n, -1).astype(np.float32)
        inter, area = thin @ thin.T, thin.sum(1)
        out[t] = inter / np.maximum(area[:, None] + area - inter, 1)
    return out


def stitch(pairs: NDArray[np.float32], starts: NDArray[np.int32], limit: float) -> NDArray[np.int64]:
    """Which track shows each stitched track in each frame, (N, T), from `overlaps` (T, N, N) and prompt frames (N,).

    Stitched track n begins as track n at its prompt. Towards each end of the video it is handed over at every key frame to that
    frame's prompt whose track it meets best on the way, when they meet by `limit`; a fresh prompt has not drifted yet.
    """
    frames, n = pairs.shape[:2]
    keys = np.unique(starts)
    source = np.repeat(np.arange(n)[:, None], frames, 1)
    for track in range(n):
        for direction in (1, -1):
            now, at = track, int(starts[track])
            for key in keys[(keys - at) * direction > 0][::direction]:
                low, high = min(at, key), max(at, key)
                fresh = np.nonzero(starts == key)[0]
                met = pairs[low : high + 1, now][:, fresh]
                pick = int(met.max(0).argmax())
                if met[:, pick].max() < limit:
                    continue
                # Where they agree most they change over, rather in the middle than near either prompt.
                away = np.abs(np.arange(low, high + 1) - (at + key) / 2) / (high - low)
                change = low + int((met[:, pick] - 0.1 * away).argmax())
                now, at = int(fresh[pick]), int(key)
                if direction > 0:
                    source[track, change + 1 :] = now
                else:
                    source[track, :change] = now
    return source


def distinct(
    pairs: NDArray[np.float32], sources: NDArray[np.int64], shown: NDArray[np.bool_], order: NDArray[np.int64],
    limit: float, keep: int,
) -> NDArray[np.int64]:  # fmt: skip
    """The first `keep` of `order` without those whose mean IoU with an earlier one, over frames (K, T) that show either, is
    above `limit`."""
    every = np.arange(sources.shape[1])
    kept: list[int] = []
    for k in order:
        if len(kept) == keep:
            break
        if kept:
            either = (shown[k] | shown[kept]).sum(1)
            iou = pairs[every, sources[k], sources[kept]].sum(1) / np.maximum(either, 1)
            if (iou > limit).any():
                continue
        kept.append(int(k))
    return np.array(kept, np.int64)


def _encode(packed: NDArray[np.uint8], sources: NDArray[np.int64], small: tuple[int, int], size: tuple[int, int]) -> RleMasks:
    """Masks (K, T) in frame pixels of the tracks that `sources` (K, T) names, their outlines interpolated."""
    rows = []
    for source in sources:
        large = np.zeros((1, len(source), *size), bool)
        for t, n in enumerate(source):
            mask = np.unpackbits(packed[n, t], axis=-1, count=small[1])
            if mask.any():
                if small != size:
                    mask = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
                large[0, t] = mask
        rows.append(RleMasks.from_dense(large))
    return RleMasks.concatenate(rows)
