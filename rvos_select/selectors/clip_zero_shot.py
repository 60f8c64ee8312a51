"""A baseline without training: CLIP's similarity of a track and the sentence.

The score of a track is the cosine of its pooled features, projected by CLIP's image head, and the sentence vector, as in zero-shot
classification (Radford et al., ICML 2021, section 3.1). Shapes: B expressions, V videos (1 or B), N tracks, T frames, P channels of a
pooled feature, D channels of the sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.clip.image import ImageHead, load_head
from rvos_cache.clip.pooling import CLIP, POOL
from rvos_cache.errors import InputError
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.pooling import card_name, pooling_of
from rvos_select.selectors.base import SelectorConfig
from rvos_select.selectors.frozen import FrozenPart
from rvos_select.selectors.untrained import Inputs, UntrainedSelector

HEAD = "clip_head"
"""Name of the image head among the frozen parts."""
LARGEST_LOGIT = 60.0
"""Of a probability that is 1 in float32, as that of a single candidate is."""


class ClipZeroShotConfig(SelectorConfig):
    """Settings of the CLIP baseline."""

    clip: str | None = None
    """The CLIP whose features were pooled: a folder that `rvos-cache convert-clip` wrote, or a hub name or folder of a CLIPModel.
    None: the checkpoint in the card of the tracks."""
    average: Literal["projections", "features"] = "projections"
    """Over the frames in which a track is present: the mean of its projections, each of length 1, or the projection of the mean of
    its features. Source: projections in CLIP4Clip (Luo et al., 2022, section 3.3, mean pooling)."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: over the candidates of the expression, so that scores add up to 1; sigmoid: of the difference to the mean of the other
    candidates that some frame shows, so that several tracks may be above the threshold. Cosines are multiplied by the checkpoint's
    factor in both."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Score above which tracks are selected; where none is above, the best track is."""


class ClipZeroShot(UntrainedSelector):
    """logit of the softmax, or of the difference to the others, of exp(logit_scale) · cos(head(track), sentence)."""

    Config = ClipZeroShotConfig
    requires = (f"features.{POOL}",)
    empty = "top1"

    def __init__(self, config: ClipZeroShotConfig) -> None:
        super().__init__(config)
        self.threshold = self.config.threshold

    def inputs(self) -> Inputs:
        """The words and features of the CLIP that `clip` names."""
        if self.config.clip is None:
            raise InputError(
                "selector clip-zero-shot: which CLIP? give the folder of convert-clip, or a CLIPModel: --set clip=FOLDER"
            )
        return Inputs("clip", {"checkpoint": self.config.clip}, {"checkpoint": self.config.clip})

    def frozen_parts(self, cards: CacheCards) -> Sequence[FrozenPart]:
        """CLIP's image head. Raises InputError for tracks that are not pooled, or words that are not of the same CLIP."""
        pooling = _pooling(cards)

        def load(name: str) -> nn.Module:
            return load_head(name)

        def digest(head: nn.Module) -> str:
            assert isinstance(head, ImageHead)
            return head.digest

        return (FrozenPart(HEAD, self.config.clip or str(pooling["checkpoint"]), load, digest, pooling["head"]),)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N), float32; 0 outside `batch.track_mask`."""
        with torch.autocast(batch.words.device.type, enabled=False):
            tracks, present = self.tracks(batch)
            last = batch.word_mask.sum(1) - 1
            sentences = F.normalize(batch.words.float()[torch.arange(len(batch), device=last.device), last], dim=-1)
            cosine = (tracks * sentences[:, None]).sum(-1)
            # A track that no frame shows comes last.
            cosine = torch.where(present, cosine, -1.0)
            return self._logits(self.head.logit_scale.exp() * cosine, batch.track_mask, batch.track_mask & present)

    @property
    def head(self) -> ImageHead:
        """CLIP's image head."""
        head = self.frozen[HEAD]
        assert isinstance(head, ImageHead)
        return head

    def tracks(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each track its vector of length 1, (V, N, D), and whether it is present in any frame, bool (V, N)."""
        by_frame = batch.features[POOL].unbind(1)
        count = torch.zeros(by_frame[0].shape[:2], dtype=torch.long, device=batch.words.device)
        total = torch.zeros((), device=batch.words.device)
        # Frame by frame: the features of a long video in float32 would take much memory.
        for pooled, is_real in zip(by_frame, batch.frame_mask.unbind(1)):
            # An absent mask is pooled to zeros.
            present = (pooled != 0).any(-1) & is_real[:, None]
            values = pooled.float()
            if self.config.average == "projections":
                values = F.normalize(self.head(values), dim=-1)
            total, count = total + values * present[..., None], count + present
        if self.config.average == "features":
            total = self.head(total / count.clamp(min=1)[..., None])
        return F.normalize(total, dim=-1), count > 0

    def _logits(self, scaled: Tensor, candidates: Tensor, present: Tensor) -> Tensor:
        """The logits whose sigmoids are the scores. scaled: cosines times the factor, (B, N); candidates: bool (B, N); present: bool
        (B, N), the candidates that some frame shows."""
        itself = torch.eye(scaled.shape[1], dtype=torch.bool, device=scaled.device)
        if self.config.score == "softmax":
            others = candidates[:, None] & ~itself  # (B, N, N)
            # p / (1 - p) of a softmax is its exponential over the sum of the others'.
            logits = scaled - torch.where(others, scaled[:, None], -torch.inf).logsumexp(-1)
        else:
            # The cosine of an absent track is none of a picture, and would lower the mean.
            others = present[:, None] & ~itself
            count = others.sum(-1)
            mean = (scaled[:, None] * others).sum(-1) / count.clamp(min=1)
            logits = torch.where(count > 0, scaled - mean, 0.0)
        return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).masked_fill(~candidates, 0.0)


def _pooling(cards: CacheCards) -> Mapping[str, Any]:
    """What the cards say of the pooling. Raises InputError as `pooling_of`, and for a CLIP without an image head."""
    for card in cards.tracks:
        record = card.extra.get(CLIP, {"head": ""})
        if record["head"] is None:
            raise InputError(
                f"{card_name(card)}: pooled with {record['checkpoint']}, which has no image head; convert open_clip's own checkpoint "
                "(rvos-cache convert-clip) and pool again"
            )
    return pooling_of(cards, ("image", "head", "text"))
