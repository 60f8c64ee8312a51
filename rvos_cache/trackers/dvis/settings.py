"""Settings of the DVIS++ tracker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rvos_cache.media.geometry import DIVISOR, STRIDE
from rvos_cache.settings import Settings

Generator = Literal["offline", "frames"]


class DvisSettings(Settings):
    """The settings of the DVIS++ tracker, all part of the cache's card except frames_per_pass."""

    checkpoint: str
    """Folder that `rvos-cache convert-dvis` wrote; for generator=frames any Mask2Former of transformers, hub name or folder."""
    side: int = Field(640, ge=DIVISOR, multiple_of=DIVISOR)
    """Pixels of both sides of the resized frame, whatever the frame's aspect ratio. Source: DeRVOS (640x640)."""
    generator: Generator = "offline"
    """offline: the referring tracker and the temporal refiner over the whole video; frames: Mask2Former's queries of each frame,
    linked by the largest total cosine, with their own masks. Source: DeRVOS, ablation of the trajectory generator."""
    max_tracks: int = Field(50, ge=1)
    """Number of queries that become tracks: those with the best class scores, except those with empty masks."""
    pool: int = Field(20, ge=0)
    """Cells along each side of the stored map of mask features, each the mean of a square of the stride-4 map; 0: none is stored.
    Source: DeRVOS (its frames of 320x320 have 20x20 patches)."""
    keep_raw: bool = False
    """Whether the frame queries before the last LayerNorm are stored, from which tracks of a clip alone can be computed."""
    frames_per_pass: int = Field(8, ge=1, exclude=True)
    """Number of frames in one pass of the segmenter; it limits memory and changes results only by rounding. Not part of the card."""

    @model_validator(mode="after")
    def _check_pool(self) -> DvisSettings:
        if self.pool and self.side // STRIDE % self.pool:
            raise ValueError(
                f"the stride-4 map of side={self.side} has {self.side // STRIDE} cells along a side, which pool={self.pool} does not "
                "divide; give a divisor, or 0 to store none"
            )
        return self
