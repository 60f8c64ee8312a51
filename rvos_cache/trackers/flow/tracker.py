"""The flow tracker: frames to tracks, presence and tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.settings import Settings
from rvos_cache.trackers.base import Tracker, part_of
from rvos_cache.trackers.flow import motion as flows
from rvos_cache.trackers.flow import tokens
from rvos_cache.trackers.flow.mask_frames import ENCODED_PIXELS
from rvos_cache.trackers.flow.settings import FlowSettings
from rvos_cache.trackers.flow.small import COMPONENT_BYTES, SmallVideo
from rvos_cache.types import VIDEO, Expression, TrackSet, Video

LARGEST_SMALL = 400 * 640
"""Pixels of the largest frame that mode "small" accepts."""
SMALL_IN_MEMORY = 1 << 27
"""Mode "small": bytes of frames, flow and masks that are kept in memory. More than in mode "full", because each colour class is
propagated through the whole video many times."""
MEASURED, SMALL_PREPARED, TRACKED = 0.15, 0.35, 0.95
"""Shares of the time after which flow is measured, colours are classified (mode "small") and tracks are there; by experience."""


class FlowTracker(Tracker):
    """Region proposals on key frames, propagated in both directions; no weights, no sentences, no ground truth."""

    Settings: type[Settings] = FlowSettings
    channels = tokens.CHANNELS
    mirrored_tokens = staticmethod(tokens.mirrored)

    def __init__(self, settings: FlowSettings) -> None:
        self.settings = settings

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """All tracks of one video, at most `max_tracks`.

        Memory is bounded whatever the number of frames, except for the tracks themselves (see `planned_memory`): frames, flow and
        masks beyond a fixed number of bytes go to a temporary file. Raises InputError if mode "small" is set for frames that are
        too large for it, OSError if the temporary file cannot be written.
        """
        settings, (h, w) = self.settings, video.size
        small = _is_small(video.size, settings)
        if small and h * w > LARGEST_SMALL:
            raise InputError(
                f"{video.video_id}: mode=small takes frames of up to {LARGEST_SMALL} pixels, not {h}x{w}; --set mode=full"
            )
        step = working_step(video.size, settings)
        progress, last = self.progress, max(1, len(video) - 1)

        def read(t: int) -> NDArray[np.uint8]:
            progress(MEASURED * t / last)
            return video.read(t)

        motion = flows.measure(read, len(video), step, SMALL_IN_MEMORY if small else flows.IN_MEMORY)
        if small:
            masks, confidence, frames = SmallVideo(motion, settings).run(part_of(progress, SMALL_PREPARED, TRACKED))
        else:
            # scikit-image is imported only where it is used.
            from rvos_cache.trackers.flow.full import full_tracks

            masks, confidence, frames = full_tracks(motion, video.size, settings, part_of(progress, MEASURED, TRACKED))
        codes, by_area = tokens.describe(video.read, masks, motion)
        presence = np.minimum(by_area.astype(np.float32), np.clip(confidence, 0.05, 1)).astype(np.float16)
        n = masks.shape[0]
        prompt = np.full(n, VIDEO, np.int32)
        return TrackSet(codes, presence, masks, prompt, ("flow",) * n, frames, _boxes(masks, frames))

    def planned_memory(self, size: tuple[int, int], frames: int) -> int:
        """About how many bytes of memory `track` takes for `frames` frames of `size` (H, W), without the program itself."""
        settings, step = self.settings, working_step(size, self.settings)
        pixels, working = size[0] * size[1], -(-size[0] // step) * -(-size[1] // step)
        # Measured: libraries and small arrays; a track in a frame (tokens and their check, masks, presence); the spool's index.
        fixed, per_track, per_frame = 45 << 20, 1300, 12_000
        if _is_small(size, settings):
            tracks = min(settings.max_tracks, settings.small_max_tracks)
            spooled = min(SMALL_IN_MEMORY + COMPONENT_BYTES, 70 * working * frames)
            return fixed + spooled + frames * (tracks * per_track + per_frame)
        prompts = min(settings.key_frames, frames) * settings.prompts_per_key
        tracks = min(settings.max_tracks, 2 * prompts)
        spooled = min(flows.IN_MEMORY, 12 * working * frames)
        # The larger of two phases: the masks of all proposals of a key frame, and the encoding of a frame's masks.
        phase = max(300 * working, 4 * min(max(ENCODED_PIXELS, pixels), tracks * pixels))
        per_frame += tracks * per_track + 48 * prompts
        return fixed + spooled + phase + prompts * working + 6 * pixels + frames * per_frame


def working_step(size: tuple[int, int], settings: FlowSettings) -> int:
    """The factor from pixels of a frame of `size` (H, W) to those that flow and tokens are measured in."""
    return 1 if _is_small(size, settings) else flows.work_step(size, settings.work_height)


def _is_small(size: tuple[int, int], settings: FlowSettings) -> bool:
    return settings.mode == "small" or (settings.mode == "auto" and size[0] * size[1] <= settings.small_pixels)


def _boxes(masks: RleMasks, frames: NDArray[np.int32]) -> NDArray[np.float32]:
    """The box float32 (N, 4), x0 y0 x1 y1, of each track in its frame of `frames` (N,)."""
    boxes = np.zeros((len(frames), 4), np.float32)
    for k, t in enumerate(frames.tolist()):
        boxes[k] = masks.select([k]).boxes()[0, t]
    boxes[:, 2:] += boxes[:, :2]
    return boxes
