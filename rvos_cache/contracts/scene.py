"""A synthetic video with ground truth, and a dataset of two, for contract tests."""

from __future__ import annotations

import numpy as np

from rvos_cache.datasets import Dataset
from rvos_cache.masks import RleMasks
from rvos_cache.types import Expression, GroundTruth, Video

SIZE = (41, 63)
"""(H, W) pixels; odd numbers, not divisible by any stride."""
SENTENCES = ("the red square", "собака 這隻鳥", "the square that moves " * 100)
"""A short sentence, one that is not English, and a very long one."""


def make_scene(
    frames: int, moves: bool = True, size: tuple[int, int] = SIZE, video_id: str = "v", seed: int = 0
) -> tuple[Video, GroundTruth]:
    """A textured background and a red square that moves right and is gone in the last frame; its frames are read-only.

    moves: False gives a grey video without any object; seed: of the background.
    """
    background = np.random.default_rng(seed).integers(70, 90, (*size, 3), dtype=np.uint8)
    pixels = np.repeat(background[None], frames, 0) if moves else np.full((frames, *size, 3), 90, np.uint8)
    masks = np.zeros((1, frames, *size), bool)
    for t in range(frames - 1 if moves else 0):
        masks[0, t, 8:26, 4 + 4 * t : 22 + 4 * t] = True
        pixels[t][masks[0, t]] = (220, 40, 40)
    pixels.flags.writeable = False
    video = Video(video_id, tuple(f"{t:05d}" for t in range(frames)), size, lambda t: pixels[t])
    return video, GroundTruth((f"{video_id}-0",), RleMasks.from_dense(masks), np.ones(frames, bool))


def make_expressions(video_id: str = "v", hidden: bool = False) -> tuple[Expression, ...]:
    """One expression per sentence: the first names the square, the others nothing. hidden: without targets."""
    targets = [(f"{video_id}-0",), (), ()]
    return tuple(Expression(video_id, str(e), text, None if hidden else targets[e]) for e, text in enumerate(SENTENCES))


class SceneDataset(Dataset):
    """Two videos; the split "train" has its ground truth, any other hides it."""

    name = "scene"

    def _check_split(self) -> None:
        """Every split exists: the videos are made, not read."""

    @property
    def has_ground_truth(self) -> bool:
        """Whether this is the split "train"."""
        return self.split == "train"

    def video_ids(self) -> tuple[str, ...]:
        """Two videos."""
        return ("v0", "v1")

    def video(self, video_id: str) -> Video:
        """A video of four or five frames."""
        return self._scene(video_id)[0]

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """The expressions of `make_expressions`."""
        return make_expressions(video_id, not self.has_ground_truth)

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """The square."""
        return self._scene(video_id)[1] if self.has_ground_truth else None

    def _scene(self, video_id: str) -> tuple[Video, GroundTruth]:
        number = int(video_id[1:])
        return make_scene(4 + number, video_id=video_id, seed=number)
