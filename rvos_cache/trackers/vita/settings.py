"""Settings of the VITA tracker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rvos_cache.settings import Settings

Profile = Literal["exact", "low_rank", "frames", "selection_only"]


class VitaSettings(Settings):
    """The settings of the VITA tracker, all part of the cache's card."""

    checkpoint: str
    """Hub name, or folder that `rvos-cache convert-vita` wrote."""
    short_side: int = Field(360, ge=32)
    """Pixels of the resized frame's shorter side. Source: DMVS."""
    long_side: int = Field(640, ge=32)
    """Largest number of pixels of the resized frame's longer side. Source: DMVS."""
    max_tracks: int = Field(20, ge=1)
    """Number of video queries that become tracks: those with the best class scores, except those with empty masks."""
    profile: Profile = "selection_only"
    """What is stored of the mask features, the only large feature (1.25 TB for MeViS under exact).

    exact: all, in float16; low_rank: their coordinates in a basis that is fitted to the dataset; frames: those of every
    `keep_every`-th frame; selection_only: none, for selectors that use the masks of the tracks as they are."""
    keep_every: int = Field(2, ge=1)
    """frames: distance in frames from one stored frame to the next."""
    basis: str = ""
    """low_rank: file that `rvos-cache fit-vita-basis` wrote."""
    pool: int = Field(0, ge=0)
    """Not 0: DeRVOS can read the cache. Areas along each side of the frame, of each of which the mean mask features are stored,
    whatever the profile; and where the split has its ground truth, the sums of soft masks that its matching reads. Source: DeRVOS,
    20 (its frames of 320x320 have 20x20 patches)."""
    frames_per_pass: int = Field(8, ge=1)
    """Number of frames in one pass of the segmenter; it limits memory and changes results only by rounding."""

    @model_validator(mode="after")
    def _check_basis(self) -> VitaSettings:
        if (self.profile == "low_rank") != bool(self.basis):
            raise ValueError(
                "profile=low_rank needs basis=FILE, and no other profile takes one; rvos-cache fit-vita-basis writes the file"
            )
        return self
