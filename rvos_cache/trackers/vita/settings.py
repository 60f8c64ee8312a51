"""Settings of the VITA tracker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rvos_cache.settings import Settings

Profile = Literal["exact", "low_rank", "frames", "selection_only"]


class VitaSettings(Settings):
    """Every choice of the VITA tracker; all of them are part of the cache's card."""

    checkpoint: str
    """A hub name or a folder that `rvos-cache convert-vita` wrote."""
    short_side: int = Field(360, ge=32)
    """Pixels of the resized frame's shorter side. Source: DMVS."""
    long_side: int = Field(640, ge=32)
    """Largest number of pixels of the resized frame's longer side. Source: DMVS."""
    max_tracks: int = Field(20, ge=1)
    """Video queries whose masks become tracks: those of the best class scores, without the ones that are empty everywhere."""
    profile: Profile = "selection_only"
    """What is kept of the mask features, the only large feature (DMVS would need 1.25 TB of them for MeViS):
    exact: all of them in float16; low_rank: their products with a basis that fits the whole dataset; frames: those of every
    `keep_every`-th frame, exact; selection_only: none, for selectors that take the tracks' masks as they are."""
    keep_every: int = Field(2, ge=1)
    """frames: frames from one kept frame to the next."""
    basis: str = ""
    """low_rank: the file that `rvos-cache fit-vita-basis` wrote."""
    frames_per_pass: int = Field(8, ge=1)
    """Frames that go through the segmenter at once; it bounds the memory and changes results by rounding alone."""

    @model_validator(mode="after")
    def _basis_where_it_is_read(self) -> VitaSettings:
        if (self.profile == "low_rank") != bool(self.basis):
            raise ValueError("profile=low_rank and basis=FILE come together; rvos-cache fit-vita-basis writes the file")
        return self
