"""Moving regions: pixels that differ from the video's median frame, as one track per connected region."""

import cv2
import numpy as np
from pydantic import Field

from rvos_cache import Settings, Tracker, TrackSet


class MyTracker(Tracker):
    channels = 4

    class Settings(Settings):
        threshold: int = Field(30, ge=0, le=255)
        """Difference of grey levels above which a pixel moves."""
        max_tracks: int = Field(8, ge=1)
        """The largest regions become tracks."""

    def track(self, video, expressions):
        frames = np.stack([video.read(t) for t in range(len(video))])
        differences = np.abs(frames - np.median(frames, axis=0)).mean(axis=-1)  # (T, H, W)
        moving = differences > self.settings.threshold
        count, labels, stats, _ = cv2.connectedComponentsWithStats(moving.any(axis=0).astype(np.uint8))
        largest = 1 + np.argsort(-stats[1:count, cv2.CC_STAT_AREA], kind="stable")[: self.settings.max_tracks]
        masks = moving & (labels == largest[:, None, None])[:, None]  # (N, T, H, W)
        weights = masks / np.maximum(masks.sum((2, 3), keepdims=True), 1)
        colours = np.einsum("nthw,thwc->ntc", weights, frames / 255.0)
        return TrackSet.from_masks(np.dstack([colours, weights.any((2, 3))]), masks)
