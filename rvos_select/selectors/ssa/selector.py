"""The selector `ssa`: its modules, their released names, and what training and prediction call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rvos_select.selectors.base import Selector, load_strictly
from rvos_select.selectors.ssa import names
from rvos_select.selectors.ssa.adapter import Adapter
from rvos_select.selectors.ssa.blocks import TextProjection
from rvos_select.selectors.ssa.config import SsaConfig
from rvos_select.selectors.ssa.frame_decoder import FrameDecoder
from rvos_select.selectors.ssa.pixel_decoder import LEVELS, PixelDecoder
from rvos_select.selectors.ssa.video import VideoPart


class Ssa(Selector):
    """Live: predicts masks of its own from the frames. Cached: scores the tracks of a cache."""

    Config = SsaConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c = self.config
        self.text_projection = TextProjection(c.word_channels, c.width)
        self.adapters = nn.ModuleList(
            Adapter(channels, c.width, c.word_channels) for channels in (c.stage_channels if c.adapters else ())
        )
        self.pixel_decoder = PixelDecoder(c.stage_channels, c.width, c.pixel_hidden, c.pixel_depth, c.fusion_width, c.fusion)
        self.frame_decoder = FrameDecoder(c.width, c.hidden, c.frame_depth, c.queries, LEVELS)
        self.video = VideoPart(c.width, c.hidden, c.video_layers, c.queries, c.link, c.temporal, c.ensemble)
        self.mask_features = nn.Conv2d(c.width, c.width, 1)

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the trained tensors of a released checkpoint; others of it are ignored. Raises InputError unless all fit."""
        state = {own: tensor for name, tensor in state_dict.items() if (own := names.from_official(name)) is not None}
        load_strictly(self, state, "SSA checkpoint")

    def official(self) -> dict[str, Tensor]:
        """The trained tensors under their released names: the inverse of `load_official`."""
        return {names.to_official(name): tensor for name, tensor in self.state_dict().items()}

    def stages(self, trunk: nn.Module, images: Tensor, sentence: Tensor, words: Tensor, word_mask: Tensor) -> list[Tensor]:
        from rvos_select.selectors.ssa.live import stages

        return stages(self.adapters, trunk, images, sentence, words, word_mask, self.config.wiring)
