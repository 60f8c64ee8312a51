"""SOLA's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rvos_select.selectors.base import SelectorConfig
from rvos_select.selectors.sola.layers import GROUPS


class SolaConfig(SelectorConfig):
    """SOLA's settings; the defaults are the paper's (32,980,480 parameters)."""

    word_channels: int = Field(default=1024, ge=GROUPS)
    """Channels of a word of the text cache. Source: RoBERTa-large."""
    align_width: int | None = Field(default=None, ge=GROUPS)
    """D, the width of the alignment layers, to which words are whitened and projected first; None: that of the words, which are
    read as they are. Source: None is SOLA's released code."""
    width: int = Field(default=512, ge=GROUPS)
    """Channels of the first three convolutions of the motion encoder. Source: SOLA's released code."""
    layers: int = Field(default=2, ge=1)
    """Alignment layers. Source: SOLA's released code."""
    heads: int = Field(default=8, ge=1)
    """Heads of every attention. Source: SOLA's released code."""
    attention: Literal["both", "objects", "motion"] = "both"
    """Attention of a layer that reads no text. objects: over tracks alone; motion: over time alone. Source: SOLA, Table 5b."""
    negatives: int = Field(default=32, ge=1)
    """Learned negative tokens. Source: SOLA section 4.1."""
    motion_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout in the motion encoder. Source: SOLA's released code."""
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of the attention. Source: SOLA's released code."""
    variant: Literal["code", "paper"] = "code"
    """Which is followed where they differ in memory, score and losses. Source: the code made the published numbers."""
    bce_weight: float = Field(default=1.0, ge=0)
    """Weight of the binary cross-entropy. Source: SOLA's released code."""
    align_weight: float = Field(default=0.3, ge=0)
    """Weight of the alignment loss. Source: SOLA's released code."""
    positive_weight: float | None = Field(default=None, gt=0)
    """Weight of positives in the binary cross-entropy; None: the variant's own. Source: 1.5 in the code, 1 in SOLA Eq. 6."""
    align_positive_weight: float = Field(default=1.5, gt=0)
    """Weight of the positive term of the code's alignment loss; the paper's has none. Source: SOLA's released code."""

    @model_validator(mode="after")
    def _divisible(self) -> SolaConfig:
        aligned = "word_channels" if self.align_width is None else "align_width"
        for name, value, by in (
            (aligned, self.aligned, GROUPS),
            (aligned, self.aligned, self.heads),
            ("width", self.width, GROUPS),
        ):
            if value % by:
                raise ValueError(f"{name} = {value} is not a multiple of {by} (norm groups or heads)")
        return self

    @property
    def aligned(self) -> int:
        """D, the width of the alignment layers."""
        return self.align_width or self.word_channels
