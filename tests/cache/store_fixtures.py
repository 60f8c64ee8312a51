"""A two-object dataset and two trackers for the tests of the store, named to the program as package.module:Class."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.settings import Settings
from rvos_cache.trackers import Tracker
from rvos_cache.types import VIDEO, Expression, FeatureSpec, GroundTruth, TrackSet, Video

H, W = 12, 17


class Tiny(Dataset):
    """`root` names the number of videos; v01 has one frame, v02 has no object; texts are long and not English."""

    name = "tiny"

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return ["train", "valid"]

    def video_ids(self) -> tuple[str, ...]:
        return tuple(f"v{i:02d}" for i in range(int(self.root.name)))

    def _rng(self, video_id: str) -> np.random.Generator:
        return np.random.default_rng(int(video_id[1:]))

    def video(self, video_id: str) -> Video:
        frames = 1 if video_id == "v01" else 5
        pixels = self._rng(video_id).integers(0, 255, (frames, H, W, 3), dtype=np.uint8)
        return Video(video_id, tuple(f"{t:05d}" for t in range(frames)), (H, W), lambda t: pixels[t])

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        return (
            Expression(video_id, "0", "собака идёт налево " * 200, (f"{video_id}-1",) if video_id != "v02" else ()),
            Expression(video_id, "1", "nothing", ()),
        )

    def ground_truth(self, video_id: str) -> GroundTruth:
        t = len(self.video(video_id))
        objects = 0 if video_id == "v02" else 2
        masks = self._rng(video_id).random((objects, t, H, W)) > 0.5
        return GroundTruth(tuple(f"{video_id}-{a}" for a in range(objects)), encode(masks), np.ones(t, bool))

    def check(self) -> Iterator[str]:
        return iter(())


def encode(masks: np.ndarray) -> RleMasks:
    """bool (K, T, H, W) -> RleMasks (K, T)."""
    return RleMasks.from_dense(masks)


class TinyTracker(Tracker):
    """Tracks that depend on the pixels only; v00 gets none. nan and bad name videos that fail; wait: seconds each."""

    class Settings(Settings):
        size: int = 4
        wait: float = 0.0
        nan: str = ""
        bad: str = ""
        stop: str = ""

    reads_expressions = False
    wants_ground_truth = False
    channels = 4
    feature_specs = (FeatureSpec("map", ("T", 3), "float32", by_frame=True),)
    label_iou = 0.5

    def __init__(self, settings: TinyTracker.Settings) -> None:
        self.settings = settings

    def weight_hashes(self) -> dict[str, str]:
        return {}

    def track(self, video: Video, expressions: Sequence[Expression], ground_truth: object = None) -> TrackSet:
        time.sleep(self.settings.wait)
        if video.video_id == self.settings.bad:
            raise InputError(f"{video.video_id}/00002.jpg: truncated; replace it")
        if video.video_id == self.settings.stop:
            raise KeyboardInterrupt
        n, t = (0 if video.video_id == "v00" else 3), len(video)
        rng = np.random.default_rng(int(video.read(0).sum()))
        tokens = rng.standard_normal((n, t, 4)).astype(np.float16)
        if video.video_id == self.settings.nan:
            tokens[0, 0, 0] = np.nan
        return TrackSet(
            tokens=tokens,
            presence=rng.random((n, t)).astype(np.float16),
            masks=encode(rng.random((n, t, H, W)) > 0.6),
            prompt=np.full(n, VIDEO, np.int32),
            origin=("grid",) * n,
            prompt_frame=np.zeros(n, np.int32),
            prompt_box=rng.random((n, 4)).astype(np.float32),
            features={"map": rng.random((t, 3)).astype(np.float32)},
        )
