"""DMVS's settings: every choice of the paper and of what it leaves open.

What the paper does not say is taken from the code of its relatives: MeViS's LMPM, DsHmp, VITA.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rvos_select.merging.policy import Empty
from rvos_select.selectors.base import SelectorConfig
from rvos_select.selectors.dmvs.layers import HEADS


class DmvsConfig(SelectorConfig):
    """DMVS's settings; the defaults are the paper's (12,707,586 learnable parameters), and its relatives' where it says nothing.

    The tables' rows: Table 3 init=random mee=false (baseline), mee=false (with the video queries); Table 4 mee_static and
    mee_motion; Table 5 init; Table 6 motion_queries; Table 7 a cache of another VITA.
    """

    token_channels: int = Field(default=256, ge=1)
    """Cm: numbers of a mask embedding, those of a VITA cache's tokens."""
    word_channels: int = Field(default=768, ge=1)
    """D: numbers per word of the text cache (roberta-base)."""
    width: int = Field(default=256, ge=HEADS, multiple_of=HEADS)
    """C: channels of the module, and of the segmenter's queries."""
    hidden: int = Field(default=2048, ge=1)
    """Width of the feed-forward layers."""
    layers: int = Field(default=6, ge=1)
    """Of the motion query decoder."""
    motion_queries: int = Field(default=20, ge=1)
    """N_m. Where the segmenter has fewer queries, all of them."""
    init: Literal["video", "text", "random"] = "video"
    """First motion queries: the video queries of the best class scores (Eq. 7), the sentence (Eq. 6), learned (Eq. 5)."""
    video_attention: bool | None = None
    """Motion queries look at the video queries in each layer; None: exactly where they do not begin as such (Table 5)."""
    position: Literal["rank", "query", "none"] = "rank"
    """What is added to motion queries in self-attention: a learned vector for each rank, VITA's own of the query, nothing."""
    mee: bool = True
    """The motion expression encoder; without it F_me is the sentence."""
    mee_form: Literal["mha", "literal"] = "mha"
    """Its attention: multi-head with a norm, or Eqs. 1 to 4 as printed, which have no parameters."""
    mee_static: bool = True
    """Frame queries look at static words (Eq. 1)."""
    mee_motion: bool = True
    """Video queries look at motion words (Eq. 2)."""
    append_sentence: bool = True
    """The sentence is a cue of both kinds (DsHmp), so neither is ever empty; without it an empty kind changes nothing."""
    cues: Literal["dmvs", "dmvs_particles", "dshmp"] = "dmvs"
    """dmvs: static words are adjectives, prepositions and nouns, motion words adverbs and verbs; dmvs_particles: a preposition
    that belongs to a verb is a motion word, as in the paper's "playing with"; dshmp: all that is no motion word is static, as in
    DsHmp's code."""
    sentence: Literal["mean_own", "mean_shared", "roberta_pooler"] = "mean_own"
    """F_se: the mean word through a projection of its own, or through that of the words; or RoBERTa's pooler over its first
    token, random and frozen as roberta-base leaves it, through a projection of its own (LMPM, DsHmp)."""
    max_length: int = Field(default=40, ge=1)
    """Words, special ones included, beyond which a sentence is cut."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """In the text projections."""
    masks: Literal["drawn", "frozen"] = "drawn"
    """drawn: by the mask head from VITA's mask features (the paper); frozen: the cache's tracks are chosen as they are, by the
    whole video's queries, which needs neither mask features nor VITA's checkpoint (the paper gives no number for it)."""
    mask_init: Literal["random", "vita"] = "random"
    """First weights of the mask head: random or those of VITA's."""
    points: int = Field(default=12_544, ge=1)
    """Points of a mask in a frame at which losses and costs are taken."""
    no_object_weight: float = Field(default=0.1, gt=0)
    class_weight: float = Field(default=2.0, ge=0)
    """λ_cls of Eq. 11."""
    bce_weight: float = Field(default=5.0, ge=0)
    dice_weight: float = Field(default=5.0, ge=0)
    """Of the two parts of L_mask (relatives; Eq. 11 as printed: 1 and 1)."""
    deep_supervision: bool = True
    """Every decoder layer is matched and has the losses, not the last one alone."""
    cost_class: float = Field(default=2.0, ge=0)
    cost_bce: float = Field(default=5.0, ge=0)
    cost_dice: float = Field(default=5.0, ge=0)
    """Of the matching."""
    cost_iou: float = Field(default=5.0, ge=0)
    """frozen: of 1 - IoU, which stands where BCE cannot be had from binary masks."""
    match: Literal["hungarian", "iou_multi"] = "hungarian"
    """frozen: each object has one positive, its matched track; iou_multi: so is every other track that covers it."""
    match_scope: Literal["clip", "video"] = "clip"
    """frozen: overlaps are counted in the frames of the clip, or in all of the video, where they do not change between clips."""
    positive_iou: float = Field(default=0.5, gt=0, lt=1)
    """iou_multi: a track covers an object with which its IoU is larger."""
    least_iou: float = Field(default=0.0, ge=0, lt=1)
    """frozen: an object whose matched track has no larger IoU with it has no positive."""
    duplicate_iou: float = Field(default=1.0, gt=0, le=1)
    """frozen: a track that is not matched but has a larger IoU with an object of the expression is no negative either, and has no
    loss; 1: every track that is not matched is a negative."""
    empty: Empty = "zeros"
    """What answers where no score is above the threshold: nothing (the relatives' code), or the best query."""
    chunk: int = Field(default=5, ge=1)
    """Frames whose mask features are read at once when masks are drawn."""
    draw_threshold: float = Field(default=0.1, ge=0, lt=1)
    """drawn: queries of lower scores are no candidates and have no mask, but for an expression's best."""

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.masks == "frozen" and (self.init != "video" or self.position == "query" or self.mask_init != "random"):
            raise ValueError("masks=frozen chooses among tracks: it wants init=video, mask_init=random and no position=query")
        if self.masks == "drawn" and (self.match != "hungarian" or self.match_scope != "clip"):
            raise ValueError("match=iou_multi and match_scope=video compare tracks with objects: they want masks=frozen")
        if self.init == "text" and self.position == "none":
            raise ValueError("init=text begins with equal queries; only a position tells them apart: position=rank")
        if self.init != "video" and self.position == "query":
            raise ValueError("position=query is that of the video query that a motion query begins as: init=video")
        if not self.mee and not (self.mee_static and self.mee_motion):
            raise ValueError("mee=false leaves the whole encoder out; mee_static and mee_motion choose parts of it")
        return self
