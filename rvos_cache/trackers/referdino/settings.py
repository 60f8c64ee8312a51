"""Settings of the tracker `gdino-queries`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rvos_cache.settings import Settings
from rvos_cache.trackers.referdino.alignment import Confidence, Linking
from rvos_cache.trackers.referdino.frame_maps import Resizing
from rvos_cache.trackers.referdino.pruning import PruneScore

MaskSource = Literal["head", "sam2", "box", "none"]


class GdinoQueriesSettings(Settings):
    """The settings of `gdino-queries`. Their defaults follow ReferDINO's released code where it differs from the paper."""

    checkpoint: str = "IDEA-Research/grounding-dino-tiny"
    """GroundingDINO of transformers, a hub name or a folder; or a folder `upstream` that `rvos-select import-referdino` or
    `rvos-cache tune-referdino` wrote."""
    masks: MaskSource = "sam2"
    """What draws the mask of a query in a frame. head: the mask decoder of the checkpoint, which must be ReferDINO's; sam2: SAM 2,
    prompted with the query's box in that frame; box: the filled box; none: nothing, every mask is empty and every presence 0."""
    keep_ratio: float = Field(0.5, gt=0, le=1)
    """Share of its queries that each of the decoder's layers keeps: of 900, 0.5 leaves 15 after six layers. Source: ReferDINO,
    section 3.3."""
    prune_score: PruneScore = "code_gate"
    """By what they are kept. code_gate: the released code's score; paper_eq4: Eq. 4; random: as in Table 5. Source: code_gate, which
    made the published weights and numbers."""
    tracker: Linking = "memory"
    """memory: the queries of different frames are linked by the memory-augmented tracker; none: each frame's queries stay in their own
    order, the best first (Table 3), for a checkpoint that was tuned so. Source: section 3.2."""
    alpha: float = Field(0.1, ge=0, le=1)
    """Weight of the present frame in the memory that links queries of different frames. Source: ReferDINO, section 4.1."""
    confidence: Confidence = "code_minmax"
    """What scales that weight. code_minmax: the largest product with a word, scaled to [0, 1] over the queries of a frame; paper_cos:
    the cosine with the sentence feature (Eq. 2). Source: code_minmax in the released code."""
    short_side: int = Field(360, ge=32)
    """Pixels of the resized frame's shorter side. Source: ReferDINO's evaluation scripts."""
    resizing: Resizing = "video"
    """How frames are resized and masks drawn. video: the longer side is not limited, mask logits are stretched over the frame; image:
    as for A2D-Sentences and JHMDB-Sentences, the longer side is at most 640 pixels, frames are padded to multiples of 32, and masks
    are cut out of the padded frame before they are resized. Source: released code."""
    sam2_checkpoint: str = "facebook/sam2-hiera-large"
    """masks=sam2: SAM 2 of transformers, a hub name or a folder."""
    frames_per_pass: int = Field(8, ge=1, exclude=True)
    """Number of frames in one pass of the model; it limits memory and changes results only by rounding. Not part of the card."""
