"""Mode "full", for real video: key frames, their prompts, propagation, and the selection of tracks.

Letters: N propagated prompts, K tracks that are kept, T frames, H W pixels, h w pixels at working resolution.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks, empty_rle
from rvos_cache.trackers.base import ShareDone, no_progress, part_of
from rvos_cache.trackers.flow.mask_frames import ENCODED_PIXELS, MaskFrames
from rvos_cache.trackers.flow.motion import Motion, camera_field, residual_speed
from rvos_cache.trackers.flow.propagate import Frame, Prompt, Propagator
from rvos_cache.trackers.flow.proposals import cues, propose
from rvos_cache.trackers.flow.settings import FlowSettings
from rvos_cache.trackers.flow.stitching import Meetings, distinct, overlaps, stitch


def key_frames(frames: int, count: int) -> list[int]:
    """`count` frames in the middles of equal parts of the video, those nearest to its middle first."""
    spread = sorted({int((i + 0.5) * frames / count) for i in range(count)})
    return sorted(spread, key=lambda t: (abs(t - (frames - 1) / 2), t))


PROMPTED, PROPAGATED = 0.3, 0.9
"""Shares of the time after which the prompts are made and the tracks are propagated; by experience."""


def full_tracks(
    motion: Motion, size: tuple[int, int], settings: FlowSettings, progress: ShareDone = no_progress
) -> tuple[RleMasks, NDArray[np.float64], NDArray[np.int32]]:
    """Masks (K, T) in pixels of a frame of `size` (H, W), confidence (K, T) in [0, 1], 0 where a track is lost, and prompt frames
    (K,); K at most `max_tracks`."""
    frames = motion.frames
    prompts, propagator = [], Propagator(motion, settings.seed)
    keys = key_frames(frames, settings.key_frames)
    for count, t in enumerate(keys):
        progress(PROMPTED * count / len(keys))
        prompts += _key_frame_prompts(propagator, motion, t, settings.prompts_per_key)
    n = len(prompts)
    if n == 0:
        return RleMasks.empty(0, frames, size), np.zeros((0, frames)), np.zeros(0, np.int32)
    masks, confidence = propagator.run(prompts, part_of(progress, PROMPTED, PROPAGATED))
    starts = np.array([prompt.start for prompt in prompts], np.int32)
    meetings = Meetings(starts)
    for t in range(frames):
        motion.arrays["overlaps", t] = overlaps(masks.frame(t))
        meetings.add(t, motion.arrays["overlaps", t])
    unstitched = np.repeat(np.arange(n)[:, None], frames, 1)
    sources = np.concatenate([unstitched, stitch(meetings, starts, frames, settings.stitch_iou)])
    confidence = confidence[sources, np.arange(frames)]
    # A high mean confidence of the classifier is the best sign of a good track; unstitched tracks come first among equals.
    order = np.argsort(-confidence.mean(1), kind="stable")
    kept = distinct(
        lambda t: motion.arrays["overlaps", t], sources, confidence > 0, order, settings.duplicate_iou, settings.max_tracks
    )
    return _encode(masks, sources[kept], size), confidence[kept], starts[kept % n]


def _key_frame_prompts(propagator: Propagator, motion: Motion, t: int, count: int) -> list[Prompt]:
    """At most `count` prompts in key frame t: its best region proposals."""
    picture = motion.frame(t)
    proposals = propose(picture, cues(picture, _residual_flow(motion, t), residual_speed(motion, t)), count)
    frame = Frame.of(picture) if proposals else None
    return [propagator.prompt(mask, t, frame) for _, mask in proposals if frame is not None]


def _residual_flow(motion: Motion, t: int) -> NDArray[np.float32]:
    """Flow (h, w, 2) of frame t without the camera motion, median-filtered."""
    if motion.frames == 1:
        return np.zeros((*motion.size, 2), np.float32)
    direction = 1 if t < motion.frames - 1 else -1
    field = motion.flow(t, direction) - camera_field(motion.background(t, direction), motion.size)
    planes = [cv2.medianBlur(np.ascontiguousarray(direction * field[..., k]), 5) for k in (0, 1)]
    return np.stack(planes, -1).astype(np.float32)


def _encode(masks: MaskFrames, sources: NDArray[np.int64], size: tuple[int, int]) -> RleMasks:
    """Masks (K, T) of `size` (H, W) of the tracks that `sources` (K, T) names, their outlines interpolated."""
    count, frames = sources.shape
    rows = [[empty_rle(size)] * frames for _ in range(count)]
    per_call = max(1, ENCODED_PIXELS // (size[0] * size[1]))
    for t in range(frames):
        small = masks.frame(t)
        visible = [k for k in range(count) if small[sources[k, t]].any()]
        for first in range(0, len(visible), per_call):
            part = visible[first : first + per_call]
            large = np.stack([enlarge(small[sources[k, t]], size) for k in part])
            # The axis of tracks takes the place of frames: one call encodes all of them.
            encoded = RleMasks.from_dense(large[None])
            for i, k in enumerate(part):
                rows[k][t] = encoded.bytes_at(0, i)
    return RleMasks.from_bytes(rows, frames, size)


def enlarge(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (h, w) at `size` (H, W), its outline interpolated."""
    if mask.shape == size:
        return mask
    return np.asarray(cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5, np.bool_)
