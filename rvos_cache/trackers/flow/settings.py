"""Settings of the flow tracker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rvos_cache.settings import Settings


class FlowSettings(Settings):
    """The settings of the flow tracker, all part of the cache's card."""

    mode: Literal["auto", "full", "small"] = "auto"
    """small: for flat-coloured objects on small frames; full: for real video; auto: small or full by the size of the frames."""
    small_pixels: int = Field(200 * 320, ge=1)
    """auto: largest number of pixels of a frame that is treated as small."""
    max_tracks: int = Field(64, ge=1, le=512)
    """Largest number of tracks of a video."""
    small_max_tracks: int = Field(24, ge=1, le=512)
    """small: largest number of tracks of a video, where it is less than `max_tracks`."""
    work_height: int = Field(240, ge=48)
    """full: frames are reduced by an integer factor that brings their shorter side to about this number of pixels."""
    key_frames: int = Field(8, ge=1)
    """full: number of key frames of a video, in which objects are proposed."""
    prompts_per_key: int = Field(14, ge=1)
    """full: number of region proposals of a key frame that are propagated."""
    stitch_iou: float = Field(0.3, gt=0, le=1)
    """full: a track is continued by a proposal of the next key frame if the two overlap by at least this IoU on the way."""
    duplicate_iou: float = Field(0.8, gt=0, le=1)
    """Of two tracks with a higher mean IoU over their frames only one is kept."""
    small_key_every: int = Field(3, ge=1)
    """small: frames from one key frame to the next."""
    seed: int = 0
    """full: seed of the random Fourier features of the appearance model."""
