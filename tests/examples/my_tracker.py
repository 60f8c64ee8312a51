"""A track for each of the most frequent colours of a video; colours are coarse, and the most frequent one is the background."""

import numpy as np
from pydantic import Field

from rvos_cache import Settings, Tracker, TrackSet


class MyTracker(Tracker):
    channels = 4

    class Settings(Settings):
        levels: int = Field(4, ge=2, le=16)
        """Levels of each of red, green and blue."""
        max_tracks: int = Field(8, ge=1)
        """The most frequent colours become tracks."""

    def track(self, video, expressions):
        levels = self.settings.levels
        frames = np.stack([video.read(t) for t in range(len(video))])  # (T, H, W, 3) uint8
        colours = frames // (256 / levels) @ [levels**2, levels, 1]  # (T, H, W), one number per colour
        values, counts = np.unique(colours, return_counts=True)
        frequent = values[np.argsort(-counts, kind="stable")][1 : self.settings.max_tracks + 1]
        masks = colours == frequent[:, None, None, None]  # (N, T, H, W) bool
        areas = masks.sum(axis=(2, 3))[..., None]  # (N, T, 1)
        means = np.einsum("nthw,thwc->ntc", masks, frames / 255) / np.maximum(areas, 1)
        tokens = np.concatenate([means, areas / colours[0].size], axis=-1)  # (N, T, 4)
        return TrackSet.from_masks(tokens, masks)
