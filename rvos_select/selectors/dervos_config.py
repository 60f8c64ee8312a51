"""DeRVOS's settings: what the summary of the paper states, and each choice that it leaves open."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rvos_select.merging.policy import Empty
from rvos_select.selectors.base import SelectorConfig
from rvos_select.selectors.dervos_layers import HEADS


class DervosConfig(SelectorConfig):
    """DeRVOS's settings; the defaults are those of its full model with BEiT-3 base (16,919,554 parameters).

    The table's rows: mgis=false (CFMA alone), tais=direct (Text-Direct Integrator), understanding=words with words of BERT, and
    queries=q_v on a cache of VITA.
    """

    token_channels: int = Field(default=512, ge=1)
    """Cq: numbers of a token of the tracks cache, DVIS++'s object features Q_f."""
    word_channels: int = Field(default=768, ge=1)
    """D: numbers of a word of the text cache, and of a patch of BEiT-3."""
    map_channels: int = Field(default=256, ge=0)
    """Cm: channels of the tracks cache's `f_mask_pooled`; 0: it holds none. Training sets it from the caches."""
    query_channels: int = Field(default=0, ge=0)
    """Channels of what stands for a track; 0: those of a token. Training sets it with queries=q_v."""
    width: int = Field(default=256, ge=HEADS, multiple_of=HEADS)
    """C: channels of the module."""
    hidden: int = Field(default=2048, ge=1)
    """Width of the feed-forward layers."""
    sem_layers: int = Field(default=3, ge=1)
    cfma_layers: int = Field(default=3, ge=1)
    mgis_layers: int = Field(default=3, ge=1)
    """Layers of SemDecoder, of the aligner (or with tais=direct of the integrator), and of the selector."""
    motion_queries: int = Field(default=10, ge=1)
    """Learned queries of SemDecoder."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """In the projection of the words."""
    understanding: Literal["beit3", "words"] = "beit3"
    """beit3: words and patches of BEiT-3, frozen, which the text cache's card names and which reads each frame with each expression;
    words: the words of the text cache, the same in all frames, and no patches (MU=BERT)."""
    tais: Literal["full", "direct"] = "full"
    """direct: tracks attend to words alone, without maps and motion queries (the Text-Direct Integrator)."""
    mgis: bool = True
    """The motion-guided selector; without it there is no SemDecoder either, and the scores are of CFMA's output."""
    queries: Literal["tokens", "q_v"] = "tokens"
    """What stands for a track in each frame: its token, or the video query of VITA that it was made of, the same in all frames."""
    cfma_scope: Literal["frame", "clip"] = "frame"
    """Tracks attend to the cells of their own frame, or of all frames of the clip."""
    text_time: Literal["concat", "mean"] = "concat"
    """SemDecoder reads the words of all frames, with a code of the time, or their mean over the frames."""
    sentence: Literal["mean", "first"] = "mean"
    """F_s: the mean word, or the encoder's first token, a special one in BEiT-3 and RoBERTa."""
    cues: Literal["verbs", "particles"] = "verbs"
    """F_m: verbs and adverbs (the summary); particles: and prepositions that belong to a verb."""
    side: int = Field(default=320, ge=1)
    """Pixels of both sides of the frames that BEiT-3 reads. Training sets it from a cache of frames. Source: the summary."""
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter that frames were resized with. Training sets it from a cache of frames. Source: BEiT-3's code."""
    match_cost: Literal["soft", "counts"] = "soft"
    """Costs of the masks: from the sums of soft masks that `dvis` measures, or from counts of binary masks, which every cache has
    (1 - IoU stands where the cross-entropy cannot be had)."""
    match_scope: Literal["clip", "video"] = "clip"
    """Frames whose masks are matched: the clip's, or all of the video, which do not change between clips."""
    match: Literal["hungarian", "iou_multi"] = "hungarian"
    """Each object has one positive, its matched track; iou_multi: so is every other track that covers it."""
    positive_iou: float = Field(default=0.5, gt=0, lt=1)
    """iou_multi: a track covers an object with which its IoU is larger."""
    least_iou: float = Field(default=0.0, ge=0, lt=1)
    """An object whose matched track has no larger IoU with it has no positive."""
    duplicate_iou: float = Field(default=1.0, gt=0, le=1)
    """A track that is not matched but has a larger IoU with an object of the expression has no loss; 1: it is a negative."""
    cost_class: float = Field(default=2.0, ge=0)
    cost_bce: float = Field(default=5.0, ge=0)
    cost_dice: float = Field(default=5.0, ge=0)
    """Of the matching. Source: DVIS++'s configurations."""
    class_weight: float = Field(default=2.0, ge=0)
    """Of the loss. Source: the same."""
    no_object_weight: float = Field(default=0.1, gt=0)
    """Weight of a track that is not referred to. Source: the same."""
    visible_only: bool = False
    """A positive has a loss only in the frames that show an object of the expression."""
    inference: Literal["dilated", "whole"] = "dilated"
    """dilated: clips of `clip_frames` frames, evenly spaced over the video, each frame in one of them; whole: all frames at once."""
    clip_frames: int = Field(default=8, ge=1)
    """dilated: most frames of a clip. Source: T=8 in training (the summary)."""
    pairs_per_pass: int = Field(default=64, ge=1)
    """Most pairs of a frame and an expression that BEiT-3 and TAIS read at once in prediction."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Of BEiT-3 and TAIS in training and prediction alike. auto: bfloat16 autocast on CUDA, float32 on a CPU."""
    store_bytes: int = Field(default=0, ge=0)
    """Bytes of BEiT-3's outputs that are kept in memory by video, frame and expression, the oldest replaced first; 0: none. An output
    of 400 patches and 20 words of BEiT-3 base takes 1.3 MB."""
    empty: Empty = "top1"
    """What is selected where no score is above the threshold: the best track (the summary's "highest score"), or nothing."""

    @property
    def reads_patches(self) -> bool:
        """Whether TAIS has the patches of BEiT-3 among its inputs."""
        return self.understanding == "beit3" and self.tais == "full"

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.tais == "direct" and self.cfma_scope == "clip":
            raise ValueError("tais=direct reads no maps, so it has no cfma_scope=clip")
        return self
