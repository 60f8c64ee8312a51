"""Four tracks, the quarters of the frame, with a feature that comes frame by frame, one of each expression, and a measurement."""

import cv2
import numpy as np

from rvos_cache import FeatureSpec, Tracker, TrackSet


class CornerTracker(Tracker):
    channels = 3
    label_iou = 0.2
    feature_specs = (
        FeatureSpec("maps", ("T", "h", "w", 3), "float16", by_frame=True),
        FeatureSpec("sides", ("E", "N"), "float32"),
    )
    measurement_specs = (FeatureSpec("soft_overlap", ("N", "A", "T"), "float32"),)

    def track(self, video, expressions):
        height, width = video.size
        quarter = (np.arange(height)[:, None] * 2 // height) * 2 + np.arange(width) * 2 // width  # (H, W) of 0 .. 3
        dense = quarter == np.arange(4)[:, None, None]
        masks = np.repeat(dense[:, None], len(video), axis=1)
        frames = np.stack([video.read(t) for t in range(len(video))]) / 255
        pixels = np.maximum(dense.sum((1, 2)), 1)[:, None, None]
        tokens = np.einsum("nhw,thwc->ntc", dense, frames) / pixels

        names = [{"top", "left"}, {"top", "right"}, {"bottom", "left"}, {"bottom", "right"}]
        words = [set(expression.text.split()) for expression in expressions]
        sides = np.array([[len(own & name) for name in names] for own in words], np.float32).reshape(-1, 4)

        def measure(ground_truth):
            objects = ground_truth.masks.dense().astype(np.float32)  # (A, T, H, W)
            return {"soft_overlap": np.einsum("nhw,athw->nat", dense.astype(np.float32) * 0.5, objects)}

        maps = ((cv2.resize(frame, (8, 6))).astype(np.float16) for frame in frames)
        return TrackSet.from_masks(tokens, masks, features={"maps": maps, "sides": sides}, measure=measure)
