"""SSA's settings: every choice of the paper, of its released code where the two differ, and of the cached form."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rvos_select.merging.policy import Empty
from rvos_select.selectors.base import SelectorConfig
from rvos_select.selectors.ssa.video import Ensemble


class SsaConfig(SelectorConfig):
    """SSA's settings; the defaults are those of the released code (46,847,569 trained parameters; 30,332,305 with form=cached).

    The tables' rows: Table 4 fusion, link, temporal and ensemble; Table 6 adapters and tune_last_stage; Table 7 fusion, link,
    temporal and ensemble.
    """

    form: Literal["live", "cached"] = "live"
    """live: SSA, which runs frozen CLIP on the frames and predicts masks; cached: its adapters, alignment and selection on CLIP
    features pooled under the tracks of a cache (`rvos-cache pool-clip`), which approximates it and trains in minutes."""
    clip: str = ""
    """live: the folder that `rvos-cache convert-clip` wrote."""
    stage_channels: tuple[int, int, int, int] = (192, 384, 768, 1536)
    """Channels of the stages of CLIP's image tower; training reads them from the checkpoint or the card of the cache."""
    word_channels: int = Field(default=768, ge=1)
    """D: channels of CLIP's words and sentence."""
    text: Literal["online", "cached"] = "online"
    """live: where words come from: CLIP's text tower, which also reads sentences that an augmentation changed, or the text cache
    of the encoder `clip`. form=cached reads the text cache."""
    longest: int = Field(default=40, ge=2)
    """Words beyond which a sentence is cut, its first and last token included; the sentence vector is that of the whole."""
    short_side: int = Field(default=448, ge=0)
    """Pixels of the frame's shorter side in CLIP's input in prediction. Source: 448 on MeViS, 480 on Ref-YouTube-VOS. With form=cached
    that of the pooled features, 0 where their frames had their own size; training reads it from the card of the cache."""
    long_side: int = Field(default=1333, ge=32)
    """Largest number of pixels of the longer side. Source: SSA's released code. form=cached: as short_side."""
    square: int = Field(default=0, ge=0)
    """cached: pixels of both sides of CLIP's input where frames were pooled at any aspect ratio, 0: off; training reads it."""
    width: int = Field(default=256, ge=32, multiple_of=32)
    """C: channels of adapters and decoders."""
    hidden: int = Field(default=2048, ge=1)
    """Width of the feed-forward layers of both query decoders."""
    pixel_hidden: int = Field(default=1024, ge=1)
    """Width of the feed-forward layers of the pixel decoder."""
    pixel_layers: int | None = Field(default=None, ge=1)
    """Layers of the pixel decoder, or with form=cached of its attention among the tokens of a frame. Default: 6; cached 3."""
    fusion_width: int = Field(default=512, ge=4, multiple_of=4)
    """Width of the fusion blocks, all heads together."""
    frame_layers: int | None = Field(default=None, ge=1)
    """Layers of the frame decoder. Default: 9; cached 3."""
    video_layers: int = Field(default=6, ge=1)
    """Layers of the video decoder."""
    queries: int = Field(default=20, ge=1)
    """live: Q, queries of a frame and of a video."""
    handed_on: int = Field(default=3, ge=1)
    """K: the last layers of the frame decoder, at most `frame_layers`, whose queries train the video part; the last one alone
    predicts."""
    wiring: Literal["inline", "side"] = "inline"
    """inline: CLIP's next stage reads what the adapter returns; side: each adapter reads the plain stage. Source: the released code
    has inline, the paper says "after the VLM". form=cached is side."""
    adapters: bool = True
    """False: the plain stages of CLIP (Table 6, frozen)."""
    fusion: bool = True
    """The bi-directional fusion of the pixel decoder (Table 7)."""
    link: bool = True
    """Frame queries are matched from frame to frame (Eq. 5)."""
    temporal: bool = True
    """Trajectories are enhanced along time (Eqs. 6 and 7)."""
    ensemble: Ensemble = "weighted"
    """What video queries begin as: the ensemble of the trajectories (Eq. 8), or the sentence."""
    tune_last_stage: bool = False
    """live: the last stage of CLIP's image tower is trained too (Table 6)."""
    last_stage_blocks: int = Field(default=3, ge=1)
    """live, tune_last_stage: its blocks; training reads them from the checkpoint."""
    clip_drop_path: float = Field(default=0.1, ge=0, lt=1)
    """live: stochastic depth of frozen CLIP in training, from 0 in the first block to this in the last. Source: 0.1 in the released
    code, 0 in the paper ("frozen")."""
    checkpointing: bool = False
    """live: stages of CLIP and layers of the pixel decoder are computed again in the backward pass instead of kept: less memory,
    about a third more time."""
    keep_bytes: int = Field(default=1_500_000_000, ge=0)
    """live: maps of a sentence that prediction keeps for its masks; where they are larger, they are computed again."""
    chunk: int = Field(default=18, ge=1)
    """live: frames at a time in prediction. Source: SSA's released code."""
    points: int = Field(default=12_544, ge=1)
    """Points of a mask in a frame at which losses and costs are taken."""
    no_object_weight: float = Field(default=0.1, gt=0)
    """Weight of queries without an object in the class losses."""
    class_weight: float = Field(default=2.0, ge=0)
    """Weight of the class losses, and of p(referred) in the matching."""
    bce_weight: float = Field(default=5.0, ge=0)
    """Weight of the cross-entropy of masks, in the loss and in the matching."""
    dice_weight: float = Field(default=5.0, ge=0)
    """Weight of the Dice loss of masks, in the loss and in the matching."""
    similarity_weight: float = Field(default=1.0, ge=0)
    """λ of L_sim. Source: 1 is in force in the released code, 0.5 is in its configuration."""
    similarity_order: Literal["linked", "own"] = "linked"
    """Which frame query stands for a match in L_sim: that of the matched position after linking, as the released code reads it, or
    the matched query itself."""
    cost_iou: float = Field(default=5.0, ge=0)
    """cached: weight of 1 - IoU in the matching, which stands where the cross-entropy cannot be had from binary tracks."""
    match: Literal["hungarian", "iou_multi"] = "hungarian"
    """cached: each object has one positive, its matched track; iou_multi: so is every other track that covers it."""
    positive_iou: float = Field(default=0.5, gt=0, lt=1)
    """cached, iou_multi: a track covers an object with which its IoU is larger."""
    first_queries: Literal["sentence", "box"] = "sentence"
    """cached: what the query of a track begins as in a frame: the sentence, or with its box added, which keeps its place in the
    values of every layer; attention alone reads it otherwise."""
    empty: Empty = "zeros"
    """What answers where no score is above the threshold. Source: zeros in the released code, top1 as ReferDINO's."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.tune_last_stage and self.form == "cached":
            raise ValueError("tune_last_stage needs form=live: pooled features do not change")
        if self.form == "live" and (self.square or self.short_side < 32):
            raise ValueError("form=live keeps the aspect ratio of frames: give a short_side of 32 or more, and no square")
        if self.handed_on > self.frame_depth:
            raise ValueError(f"handed_on={self.handed_on} is more than the {self.frame_depth} layers of the frame decoder")
        return self

    @property
    def frame_depth(self) -> int:
        """Layers of the frame decoder."""
        return self.frame_layers or (9 if self.form == "live" else 3)

    @property
    def pixel_depth(self) -> int:
        """Layers of the pixel decoder."""
        return self.pixel_layers or (6 if self.form == "live" else 3)
