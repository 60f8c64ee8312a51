"""Settings of the SAM 2 trackers: SOLA's stage one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ByteSize, Field

from rvos_cache.settings import Settings

RELEASED = (4, 2)
"""Prompts in a batch of SOLA's released scripts, and in one of a long video."""
BATCHES = ((20, 16), (12, 8))
"""Gigabytes of a GPU, and the prompts that it propagates together: at 1024 pixels 16 take 6 GB, next to the features of a video."""


def batch_for(long: bool = False) -> int:
    """Prompts that are propagated together on this machine's GPU. It depends on the GPU's whole memory and not on what is free, so that
    all processes of a run, which share a card, agree; a batch that does not fit is propagated in parts, with the same tracks."""
    from rvos_cache.system.device import device

    where = device()
    if where.type != "cuda":
        return RELEASED[long]
    import torch

    total = torch.cuda.get_device_properties(where).total_memory / 1e9
    return next((batch for least, batch in BATCHES if total >= least), RELEASED[long])


class Sam2Settings(Settings):
    """Settings of every SAM 2 tracker. The last four do not change the tracks, so they are not stored in a cache's card."""

    checkpoint: str = "facebook/sam2-hiera-large"
    """A hub name or a folder of transformers; `rvos-cache convert-sam2` makes such a folder of Meta's `.pt` file."""
    backend: Literal["transformers", "official"] = "transformers"
    """official: Meta's own package `sam2`, installed by the user; it encodes each frame again for every batch and direction. It
    takes a hub name, a `.pt` file, or a folder with one `.pt` file or a model of transformers."""
    batch: int = Field(default_factory=batch_for, ge=1)
    """Prompts of one frame that are propagated together; it is part of a cache's card, since prompts of one batch are not compared
    with each other's tracks. Without it the memory of the GPU decides: 16 from 20 GB, 8 from 12 GB, else 4, and 4 without a GPU.
    Source: 4 in SOLA's released scripts."""
    long_batch: int = Field(default_factory=lambda: batch_for(long=True), ge=1)
    """The same for videos of more than `long_frames` frames; 2 where `batch` would be 4. Source: 2 in SOLA's released scripts."""
    long_frames: int = Field(200, ge=1)
    """Frames above which a video is long."""

    gpu_memory: ByteSize = Field(ByteSize(12 << 30), ge=0, exclude=True)
    """Image features of a video up to this size, and up to half of the GPU's memory, stay on the GPU ("8GB"): 8 MB per frame of a
    1024-pixel model. Without a GPU this has no effect."""
    host_memory: ByteSize = Field(ByteSize(16 << 30), ge=0, exclude=True)
    """Those beyond `gpu_memory` stay in (pinned) host memory up to this size, the rest in a file of the temporary folder."""
    encoder_batch: int = Field(8, ge=1, exclude=True)
    """Frames in one batch of the image encoder."""
    compile: bool = Field(False, exclude=True)
    """Compile the image encoder: takes minutes at the start, and is faster in a long run."""


class PromptedSettings(Sam2Settings):
    """Settings of the trackers that find their own prompts."""

    prompt_every: Annotated[int, Field(ge=1)] | Literal["half"] = 4
    """Frames between two prompt frames; half: every floor(T / 2) frames, as SOLA's released scripts do for `grid` at evaluation.
    Source: SOLA, section 4.2."""
    prompt_features: Literal["image", "video"] = "image"
    """Features from which the masks of points and boxes are made. image: the prompt frames are encoded once more, resized as in
    Meta's image predictor (bilinear, floating pixels). video: the features of tracking (bicubic) are used, so
    that each frame is encoded once: saves one encoding per prompt frame, but the prompt masks are not exactly SAM 2's.
    Source: image in SOLA's released scripts."""
    rounds: Literal["sola", "ours"] = "sola"
    """How prompts are grouped into batches. sola: near-duplicates of one frame are tracked in one batch; boxes of an
    expression end a batch at the first prompt of another frame, and count twice towards the limit within it; the empty mask of a
    box is tracked, as an object that is hidden in its frame; tracks that are never visible are stored. ours: near-duplicates in a
    batch are skipped, batches are filled, empty masks and tracks that are never visible are dropped. Source: sola as SOLA's
    released scripts."""
    same_iou: float = Field(0.7, ge=0, le=1)
    """A prompt is dropped when a track's mask in the prompt's own frame has a higher IoU with it. Source: SOLA, appendix."""
    iou_size: Literal["video", "540x960"] = "video"
    """Size at which that IoU is computed. video: that of the frames. 540x960: 540x960 pixels (height, width), or
    960x540 where a frame is not wider than high; tracks are resized bilinearly and cut at 0.5, prompts by nearest pixels. Source:
    540x960 in SOLA's released scripts."""


class GridSettings(PromptedSettings):
    """Settings of `sam2-grid`. The thresholds are the defaults of SAM 2's mask generator."""

    points_per_side: int = Field(32, ge=1)
    """The grid has this many points in each direction. Source: SAM 2's automatic mask generator."""
    points_per_batch: int = Field(64, ge=1, exclude=True)
    """Points in one batch of the mask decoder; does not change the masks."""
    predicted_iou: float = Field(0.8, ge=0, le=1)
    """A mask is kept when its predicted IoU is higher. Source: SAM 2's automatic mask generator."""
    stability: float = Field(0.95, ge=0, le=1)
    """A mask is kept when |logit > +offset| / |logit > -offset| is at least this; 0 keeps all.
    Source: SAM 2's automatic mask generator."""
    stability_offset: float = Field(1.0, ge=0)
    """Offset of the logits in `stability`. Source: SAM 2's automatic mask generator."""
    nms_iou: float = Field(0.7, ge=0, le=1)
    """Of two masks whose boxes have a higher IoU, the one of lower predicted IoU is dropped. Source: SAM 2's
    automatic mask generator."""
    part: float = Field(0.7, ge=0, le=1)
    """A mask is a part of a larger one, and dropped, when more than this share of it lies inside."""
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
    """A mask is kept when |logit > +offset| / |logit > -offset| of its low-resolution logits is at least this. Source:
    SOLA's released scripts."""
    stability_offset: float = Field(1.0, ge=0)
    """Offset of the logits in `stability`."""
    tracks_per_expression: int = Field(16, ge=1)
    """Largest number of tracks of an expression."""


class GroundTruthSettings(Sam2Settings):
    """Settings of `sam2-gt`."""

    again_iou: float = Field(0.5, ge=0, le=1)
    """An object is prompted a second time, in its first frame, when its track's IoU with it there is lower."""
