"""Real video: key frames, their prompts, propagation, and what is kept."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.flow import motion as flows
from rvos_cache.trackers.flow.appearance import video_inputs
from rvos_cache.trackers.flow.propagate import Propagator
from rvos_cache.trackers.flow.proposals import cues, propose
from rvos_cache.trackers.flow.settings import FlowSettings
from rvos_cache.types import Video


def key_frames(frames: int, count: int) -> list[int]:
    """`count` frames in the middles of equal parts of the video, those nearest to its middle first."""
    spread = sorted({int((i + 0.5) * frames / count) for i in range(count)})
    return sorted(spread, key=lambda t: (abs(t - (frames - 1) / 2), t))


def full_tracks(
    video: Video, motion: flows.Motion, settings: FlowSettings
) -> tuple[RleMasks, NDArray[np.float64], NDArray[np.int32]]:
    """Masks (N, T) in frame pixels, confidence (N, T) and prompt frames (N,), N at most `max_tracks`."""
    frames, step = len(video), motion.step
    grey = []
    for t in range(frames):
        grey.append(cv2.cvtColor(flows.shrink(video.read(t), step), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255)
    propagator = Propagator(motion, video_inputs(video.read, frames, step), grey, settings.seed)
    masks = np.zeros((0, frames, *motion.size), bool)
    sure, starts, ranks = np.zeros((0, frames)), np.zeros(0, np.int32), np.zeros(0)
    for t in key_frames(frames, settings.key_frames):
        move = _residual_move(motion, t, frames)
        frame = flows.shrink(video.read(t), step)
        found = cues(frame, move, flows.residual(motion, t))
        prompts = propose(frame, found, settings.prompts_per_key)
        prompts = [(rank, p) for rank, p in prompts if not _covered(p, masks[:, t], settings.covered_iou)]
        fresh = [p for _, p in prompts]
        if not fresh:
            continue
        more, trust = propagator.run(fresh, t)
        masks, sure = np.concatenate([masks, more]), np.concatenate([sure, trust])
        starts = np.concatenate([starts, np.full(len(fresh), t, np.int32)])
        ranks = np.concatenate([ranks, [rank for rank, _ in prompts]])
    # A prompt that stood out and a classifier that stayed sure of it both speak for a track.
    order = np.argsort(-(ranks + 2 * sure.mean(1)), kind="stable") if len(ranks) else np.zeros(0, int)
    kept = order[distinct(masks[order], settings.duplicate_iou)][: settings.max_tracks]
    return _encode(masks[kept], video.size), sure[kept], starts[kept]


def _residual_move(motion: flows.Motion, t: int, frames: int) -> NDArray[np.float32]:
    """Flow (h, w, 2) of frame t that the camera does not explain."""
    if frames == 1:
        return np.zeros((*motion.size, 2), np.float32)
    direction = 1 if t < frames - 1 else -1
    field = motion.flow(t, direction) - flows.camera_field(motion.background(t, direction), motion.size)
    planes = [cv2.medianBlur(np.ascontiguousarray(direction * field[..., k]), 5) for k in (0, 1)]
    return np.stack(planes, -1).astype(np.float32)


def _covered(prompt: NDArray[np.bool_], masks: NDArray[np.bool_], limit: float) -> bool:
    if not len(masks):
        return False
    inter = (masks & prompt).sum((1, 2))
    return bool((inter > limit * (masks | prompt).sum((1, 2))).any())


def distinct(masks: NDArray[np.bool_], limit: float) -> list[int]:
    """Indices of (N, T, h, w) without those whose mean IoU over frames with an earlier one is above `limit`."""
    thin = masks[:, :, ::4, ::4].astype(np.float32)
    thin = thin.reshape(*thin.shape[:2], thin.shape[2] * thin.shape[3])
    area = thin.sum(-1)
    kept: list[int] = []
    for i in range(len(masks)):
        if kept:
            inter = np.einsum("tp,ktp->kt", thin[i], thin[kept])
            union = area[i] + area[kept] - inter
            shown = union > 0
            iou = np.where(shown, inter / np.maximum(union, 1), 0).sum(1) / np.maximum(shown.sum(1), 1)
            if (iou > limit).any():
                continue
        kept.append(i)
    return kept


def _encode(masks: NDArray[np.bool_], size: tuple[int, int]) -> RleMasks:
    """Working masks (N, T, h, w) as masks in frame pixels, their outlines interpolated."""
    n, t = masks.shape[:2]
    if n == 0:
        return RleMasks.empty(0, t, size)
    if masks.shape[2:] == size:
        return RleMasks.from_dense(masks)
    rows = []
    for track in masks:
        large = np.zeros((1, t, *size), bool)
        for frame, mask in enumerate(track):
            if mask.any():
                soft = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
                large[0, frame] = soft > 0.5
        rows.append(RleMasks.from_dense(large))
    return RleMasks.concatenate(rows)
