"""A video of two moving squares, and the tiny SAM 2 on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny_sam2
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2.backend import Prompt, Propagated, make_prompts
from rvos_cache.trackers.sam2.settings import GridSettings
from rvos_cache.trackers.sam2.transformers_backend import TransformersBackend
from rvos_cache.types import Video

SIZE = (60, 84)
FRAMES = 18
"""More than the frames whose pointers, or whose maps, are attended to."""
TOLERANCE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}
"""float32 has 6e-8; tens of frames that depend on each other, and tokens of up to 5, multiply it."""


def moving(frames: int) -> NDArray[np.uint8]:
    """Noise, and two squares that cross it."""
    pictures = np.random.default_rng(0).integers(0, 255, (frames, *SIZE, 3), np.uint8)
    for t in range(frames):
        pictures[t, 10:30, 5 + 2 * t : 25 + 2 * t] = (220, 40, 40)
        pictures[t, 35:50, 60 - 2 * t : 75 - 2 * t] = (20, 240, 40)
    return pictures


def as_video(pictures: NDArray[np.uint8]) -> Video:
    return Video("v", tuple(f"{t:05d}" for t in range(len(pictures))), SIZE, pictures.__getitem__)


def squares(t: int) -> NDArray[np.bool_]:
    """Three masks of frame t: the squares, and a corner."""
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 10:30, 5 + 2 * t : 25 + 2 * t] = masks[1, 35:50, 60 - 2 * t : 75 - 2 * t] = masks[2, :20, :40] = True
    return masks


def prompts_of(masks: NDArray[np.bool_], t: int) -> list[Prompt]:
    return make_prompts(RleMasks.from_dense(masks[:, None]), t, keep_empty=True)


def make_backend(**settings: Any) -> TransformersBackend:
    return TransformersBackend(GridSettings(checkpoint=tiny_sam2.shared_checkpoint(), **settings))


def propagate(frames: int, t: int, masks: NDArray[np.bool_], backend: TransformersBackend | None = None) -> Propagated:
    with (backend or make_backend()).open(as_video(moving(frames))) as session:
        return session.propagate(t, prompts_of(masks, t))
