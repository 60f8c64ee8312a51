"""ReferDINO's settings in stage two: the choices of the paper, of the released code, and of the cached form."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rvos_cache.trackers.referdino.alignment import Confidence
from rvos_cache.trackers.referdino.enhancer import HEADS
from rvos_select.selectors.base import SelectorConfig
from rvos_select.selectors.referdino.cached_losses import BoxFrames, LossSettings, TargetMode


class ReferDinoConfig(SelectorConfig):
    """ReferDINO's settings; the defaults are those of its released Swin-T model of MeViS (5,661,444 parameters)."""

    token_channels: int = Field(default=256, ge=HEADS, multiple_of=HEADS)
    """C: channels of a query and of a text token."""
    hidden: int = Field(default=2048, ge=1)
    """Width of the enhancer's feed-forward layers. Source: the released code."""
    temporal_layers: int = Field(default=3, ge=0)
    """Blocks of the temporal enhancer; 0: none, the classes are GroundingDINO's own. Source: section 4.1; Table 3: 0."""
    sentence_feature: Literal["cls", "mean_tokens", "both"] = "cls"
    """What the enhancer attends from in each frame: the token [CLS] (section 3.2), the mean of all text tokens, or the mean of
    these two. In GroundingDINO [CLS] attends to itself alone, and meets the words through the image only."""
    logit_affine: bool = False
    """Learn a scale and a bias of the logits, at first 1 and 0. The published model has none."""
    tracker: Literal["cached", "retrack", "none"] = "cached"
    """Which queries of the frames are one track. cached: those of the cache, aligned over the whole video; retrack: aligned again over
    the frames of the batch with `alpha` and `confidence`, a clip for itself, as in the released training; none: each frame's queries
    in their own order, the best first (Table 3, without tracker). The last two read the feature `raw`."""
    alpha: float = Field(default=0.1, ge=0, le=1)
    """retrack: weight of the present frame in the tracker's memory. Source: section 4.1; Fig. 7 compares 0 to 1."""
    confidence: Confidence = "code_minmax"
    """retrack: the confidence that `alpha` is multiplied by: the released code's, or that of Eq. 2."""
    box_init: Literal["upstream", "random"] = "upstream"
    """First weights of the box head: those of the checkpoint that the cache's card names, or random."""
    target_mode: TargetMode = "union_single"
    """union_single: one track is the target of an expression, matched with the union of its objects (the released code);
    multi_positive: every track that covers an object is one."""
    positive_iou: float = Field(default=0.5, gt=0, le=1)
    """multi_positive: the least mean IoU with an object of a track that covers it."""
    box_frames: BoxFrames = "all"
    """Frames whose boxes count: all, with boxes of zeros where the object is absent (the released code), or those that show it."""
    cost_class: float = Field(default=2.0, ge=0)
    cost_l1: float = Field(default=1.0, ge=0)
    cost_giou: float = Field(default=1.0, ge=0)
    cost_mask: float = Field(default=5.0, ge=0)
    cost_dice: float = Field(default=5.0, ge=0)
    """Of the matching. Source: the released configuration mevis_swint."""
    class_weight: float = Field(default=2.0, ge=0)
    l1_weight: float = Field(default=1.0, ge=0)
    giou_weight: float = Field(default=1.0, ge=0)
    """Of the losses. Source: the same."""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.tracker == "retrack" and self.target_mode == "multi_positive":
            raise ValueError("target_mode=multi_positive counts the positives before a step: it wants tracker=cached or none")
        return self

    def losses(self) -> LossSettings:
        """What the losses are computed with."""
        costs = {
            "cls": self.cost_class,
            "l1": self.cost_l1,
            "giou": self.cost_giou,
            "mask": self.cost_mask,
            "dice": self.cost_dice,
        }
        weights = {"cls": self.class_weight, "l1": self.l1_weight, "giou": self.giou_weight}
        return LossSettings(costs, weights, self.target_mode, self.positive_iou, self.box_frames)
