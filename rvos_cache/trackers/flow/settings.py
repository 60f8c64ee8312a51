"""Settings of the flow tracker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rvos_cache.settings import Settings


class FlowSettings(Settings):
    """Settings of the flow tracker; all of them are part of the cache's card."""

    mode: Literal["auto", "full", "small"] = "auto"
    """small: for flat-coloured objects on small frames; full: for real video; auto: by the size of the frames."""
    small_pixels: int = Field(200 * 320, ge=1)
    """auto: frames of at most this many pixels are small."""
    max_tracks: int = Field(64, ge=1, le=512)
    """full: largest number of tracks of a video."""
    small_max_tracks: int = Field(24, ge=1, le=512)
    """small: largest number of tracks of a video."""
    work_height: int = Field(240, ge=48)
    """full: frames are shrunk by a whole-number factor until their shorter side is at most about this."""
    key_frames: int = Field(8, ge=1)
    """full: number of key frames, in which regions are proposed."""
    prompts_per_key: int = Field(14, ge=1)
    """full: largest number of proposed regions of a key frame that become prompts."""
    stitch_iou: float = Field(0.3, gt=0, le=1)
    """full: a track is handed over to a prompt of the next key frame whose track it meets by this IoU on the way."""
    duplicate_iou: float = Field(0.8, gt=0, le=1)
    """Of two tracks with a higher mean IoU over their frames only one is kept."""
    small_key_every: int = Field(3, ge=1)
    """small: frames between two key frames."""
    seed: int = 0
    """Seed of the random Fourier features of the appearance model."""
