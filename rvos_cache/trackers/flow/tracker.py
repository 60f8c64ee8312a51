"""The flow tracker: frames to tracks, presence and tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.settings import Settings
from rvos_cache.trackers.base import Tracker
from rvos_cache.trackers.flow import motion as flows
from rvos_cache.trackers.flow import tokens
from rvos_cache.trackers.flow.settings import FlowSettings
from rvos_cache.trackers.flow.small import SmallVideo
from rvos_cache.types import VIDEO, Expression, TrackSet, Video

LARGEST_SMALL = 400 * 640
"""Pixels of the largest frame that mode "small" takes."""


class FlowTracker(Tracker):
    """Region proposals on key frames, propagated both ways; no weights, no sentences, no ground truth."""

    Settings: type[Settings] = FlowSettings
    channels = tokens.CHANNELS
    mirrored_tokens = staticmethod(tokens.mirrored)

    def __init__(self, settings: FlowSettings) -> None:
        self.settings = settings

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """All tracks of one video, at most `max_tracks`."""
        settings, (h, w) = self.settings, video.size
        small = _is_small(video.size, settings)
        if small and h * w > LARGEST_SMALL:
            raise InputError(
                f"{video.video_id}: mode=small holds every track's pixels, {h}x{w} is too large for it; --set mode=full"
            )
        step = working_step(video.size, settings)
        # small frames are read three times: decoded once, they take a few MB
        read = [video.read(t) for t in range(len(video))].__getitem__ if small else video.read
        motion = flows.measure(read, len(video), step)
        if small:
            masks, shown, frames = _small(read, len(video), motion, settings)
        else:
            from rvos_cache.trackers.flow.full import full_tracks

            masks, shown, frames = full_tracks(video, motion, settings)
        codes, by_area = tokens.describe(read, masks, motion)
        presence = np.minimum(by_area.astype(np.float32), np.clip(shown, 0.05, 1)).astype(np.float16)
        presence[masks.area() == 0] = 0
        n = masks.shape[0]
        boxes = masks.boxes()[np.arange(n), frames].astype(np.float32).reshape(n, 4)
        boxes[:, 2:] += boxes[:, :2]
        prompt = np.full(n, VIDEO, np.int32)
        return TrackSet(codes, presence, masks, prompt, ("flow",) * n, frames, boxes)


def working_step(size: tuple[int, int], settings: FlowSettings) -> int:
    """The factor from pixels of a frame of `size` (H, W) to those that flow and tokens are measured in."""
    return 1 if _is_small(size, settings) else flows.work_step(size, settings.work_height)


def _is_small(size: tuple[int, int], settings: FlowSettings) -> bool:
    return settings.mode == "small" or (settings.mode == "auto" and size[0] * size[1] <= settings.small_pixels)


def _small(
    read: flows.Reader, frames: int, motion: flows.Motion, settings: FlowSettings
) -> tuple[RleMasks, NDArray[np.float64], NDArray[np.int32]]:
    """Masks (N, T), shares shown (N, T) and prompt frames (N,) of the small mode."""
    found = SmallVideo(read, frames, motion, settings).run()
    if not found:
        return RleMasks.empty(0, frames, motion.size), np.zeros((0, frames)), np.zeros(0, np.int32)
    masks = RleMasks.from_dense(np.stack([k.masks for k in found]))
    return masks, np.stack([k.shown for k in found]), np.array([k.frame for k in found], np.int32)
