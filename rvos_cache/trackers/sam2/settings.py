"""Settings of the SAM 2 trackers: SOLA's stage one. [code]: its released scripts, where the paper is silent or differs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ByteSize, Field

from rvos_cache.settings import Settings


class Sam2Settings(Settings):
    """What every SAM 2 tracker needs. The last four change no track, so they are no part of a cache's card."""

    checkpoint: str = "facebook/sam2-hiera-large"
    """A hub name or a folder; for the backend `official` a hub name."""
    backend: Literal["transformers", "official"] = "transformers"
    """official: Meta's own package `sam2`, installed by the user; it reads the image again for every batch and direction."""
    batch: int = Field(4, ge=1)
    """Masks of one prompt frame that are propagated together. Source: SOLA's released scripts."""
    long_batch: int = Field(2, ge=1)
    """The same for videos of more than `long_frames` frames. Source: SOLA's released scripts."""
    long_frames: int = Field(200, ge=1)
    """Frames above which a video is long."""

    gpu_memory: ByteSize = Field(ByteSize(8 << 30), ge=0, exclude=True)
    """Image features of a video up to this size stay on the GPU ("8GB"): 8 MB a frame of a 1024-pixel model.
    Without a GPU this counts for nothing."""
    host_memory: ByteSize = Field(ByteSize(16 << 30), ge=0, exclude=True)
    """Those beyond `gpu_memory` stay in (pinned) host memory up to this size, the rest in a file of the temporary folder."""
    encoder_batch: int = Field(4, ge=1, exclude=True)
    """Frames that the image encoder takes at once."""
    compile: bool = Field(False, exclude=True)
    """Compile the image encoder: minutes at the start, faster in a long run."""


class PromptedSettings(Sam2Settings):
    """What the trackers that look for their prompts themselves have in common."""

    prompt_every: Annotated[int, Field(ge=1)] | Literal["half"] = 4
    """Frames between two prompt frames; half: every floor(T / 2) frames, as SOLA's released scripts do for `grid` at evaluation.
    Source: SOLA, section 4.2."""
    same_iou: float = Field(0.7, ge=0, le=1)
    """A prompt mask is dropped when a track meets it in the prompt's own frame by a higher IoU. Source: SOLA, appendix."""
    iou_size: Literal["video", "540x960"] = "video"
    """Pixels in which that IoU is taken: the video's own, or 540x960 (height, width) as in SOLA's released scripts."""


class GridSettings(PromptedSettings):
    """Settings of `sam2-grid`. The thresholds are the defaults of SAM 2's mask generator."""

    points_per_side: int = Field(32, ge=1)
    """The grid has this many points in each direction. Source: SAM 2's automatic mask generator."""
    points_per_batch: int = Field(64, ge=1, exclude=True)
    """Points that the mask decoder takes at once; changes no mask."""
    predicted_iou: float = Field(0.8, ge=0, le=1)
    """A mask is kept when SAM 2 expects a higher IoU of it. Source: SAM 2's automatic mask generator."""
    stability: float = Field(0.95, ge=0, le=1)
    """A mask is kept when |logit > +offset| / |logit > -offset| is at least this. Source: SAM 2's automatic mask generator."""
    stability_offset: float = Field(1.0, ge=0)
    """Offset of the logits in `stability`. Source: SAM 2's automatic mask generator."""
    nms_iou: float = Field(0.7, ge=0, le=1)
    """Of two masks whose boxes meet by a higher IoU, the one that SAM 2 expects less of is dropped.
    Source: SAM 2's automatic mask generator."""
    part: float = Field(0.7, ge=0, le=1)
    """A mask is part of a larger one, and dropped, when more than this share of it lies inside."""
    max_tracks: int = Field(64, ge=1)
    """Largest number of tracks of a video."""


class BoxSettings(PromptedSettings):
    """Settings of `sam2-box`."""

    grounding_checkpoint: str = "IDEA-Research/grounding-dino-tiny"
    """GroundingDINO: a hub name or a folder."""
    box_threshold: float = Field(0.2, ge=0, le=1)
    """A box is kept when GroundingDINO's score of it is higher."""
    text_threshold: float = Field(0.25, ge=0, le=1)
    """A word belongs to a box when GroundingDINO's score of the pair is higher."""
    stability: float = Field(0.85, ge=0, le=1)
    """The mask of a box is kept when |logit > +offset| / |logit > -offset| is at least this."""
    stability_offset: float = Field(1.0, ge=0)
    """Offset of the logits in `stability`."""
    tracks_per_expression: int = Field(16, ge=1)
    """Largest number of tracks of an expression."""


class GroundTruthSettings(Sam2Settings):
    """Settings of `sam2-gt`."""

    again_iou: float = Field(0.5, ge=0, le=1)
    """An object is prompted a second time, in its first frame, when its track meets it there by a lower IoU."""
