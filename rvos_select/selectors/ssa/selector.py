"""The selector `ssa`: its modules, their released names, and what training and prediction call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.clip.pooling import NAMES as POOLED
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.pooling import check_words
from rvos_select.data.video import InferenceVideo
from rvos_select.merging.policy import Empty
from rvos_select.selectors.base import Scored, Selector, load_strictly
from rvos_select.selectors.frozen import FrozenPart
from rvos_select.selectors.ssa import cached, clip, live, names
from rvos_select.selectors.ssa.adapter import Adapter
from rvos_select.selectors.ssa.blocks import TextProjection
from rvos_select.selectors.ssa.cached_losses import track_losses
from rvos_select.selectors.ssa.clip import Text
from rvos_select.selectors.ssa.config import SsaConfig
from rvos_select.selectors.ssa.frame_decoder import FrameDecoder
from rvos_select.selectors.ssa.losses import losses, normalisers
from rvos_select.selectors.ssa.pixel_decoder import LEVELS, PixelDecoder
from rvos_select.selectors.ssa.video import VideoPart

DRAW_THRESHOLD = 0.1
"""Score of a query below which its mask is predicted only where it is an expression's best."""


class Ssa(Selector):
    """form=live predicts masks of its own from the frames, form=cached scores the tracks of a cache."""

    Config = SsaConfig
    threshold = 0.5
    top1_of_one = True

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c = self.config
        self.text_projection = TextProjection(c.word_channels, c.width)
        self.adapters = nn.ModuleList(
            Adapter(channels, c.width, c.word_channels) for channels in (c.stage_channels if c.adapters else ())
        )
        slots = c.queries if self.draws else 0
        self.video = VideoPart(c.width, c.hidden, c.video_layers, slots, c.link, c.temporal, c.ensemble)
        sizes = (c.stage_channels, c.width, c.pixel_hidden, c.pixel_depth, c.fusion_width, c.fusion)
        if not self.draws:
            self.tracks = cached.TrackFrames(*sizes, c.hidden, c.frame_depth, c.first_queries == "box")
            return
        self.pixel_decoder = PixelDecoder(*sizes, checkpointing=c.checkpointing)
        self.frame_decoder = FrameDecoder(c.width, c.hidden, c.frame_depth, c.queries, LEVELS)
        self.mask_features = nn.Conv2d(c.width, c.width, 1)
        self.last_stage = clip.new_last_stage(c.stage_channels, c.last_stage_blocks) if c.tune_last_stage else None
        self._untrained = True
        self.register_load_state_dict_post_hook(_trained)  # type: ignore[no-untyped-call]

    @classmethod
    def config_values(cls, values: Mapping[str, Any], cards: CacheCards) -> dict[str, Any]:
        """Channels are those of the caches; of CLIP's stages, and live of its words, those of the checkpoint."""
        from_caches = super().config_values(values, cards)
        if values.get("form", "live") == "cached":
            return {**from_caches, **cached.pooled_settings(cards)}
        # It reads no tokens, so the frames may lie in the cache of any tracker.
        return {**from_caches, "token_channels": 0, **clip.clip_sizes(values.get("clip", ""))}

    @property
    def requires(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parts of a Batch that it reads."""
        if self.draws:
            return ("pixels", "truth")
        return (*(f"frames.{name}" for name in POOLED), "overlap")

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Its logits are of queries with masks of their own, not of the tracks."""
        return self.config.form == "live"

    @property
    def draw_threshold(self) -> float:  # type: ignore[override]
        """Score of a query below which its mask is predicted only where it is an expression's best."""
        return DRAW_THRESHOLD

    @property
    def empty(self) -> Empty:  # type: ignore[override]
        """What is selected where no score is above the threshold."""
        return self.config.empty

    @property
    def encodes_text(self) -> bool:  # type: ignore[override]
        """It reads sentences by CLIP's text tower instead of cached words."""
        return self.draws and self.config.text == "online"

    # Released tensors.

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the trained tensors of a released checkpoint; its others are ignored. Raises InputError unless all fit."""
        state = {own: tensor for name, tensor in state_dict.items() if (own := names.from_official(name)) is not None}
        load_strictly(self, state, "SSA checkpoint")

    def named_as_here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As Selector; released names, also those of the Mask2Former that SSA starts from, are translated."""
        return {names.from_official(name) or name: tensor for name, tensor in tensors.items()}

    def official(self) -> dict[str, Tensor]:
        """The trained tensors under their released names: the inverse of `load_official`."""
        return {names.to_official(name): tensor for name, tensor in self.state_dict().items()}

    # Frozen CLIP.

    def frozen_parts(self, cards: CacheCards) -> Sequence[FrozenPart]:
        """Live: CLIP's image tower, and its text tower where sentences are read online. Raises InputError for words of another."""
        c = self.config
        if not self.draws:
            cached.check_cards(cards, c.stage_channels)
            return ()
        parts = [clip.image_part(c.clip, c.stage_channels, c.clip_drop_path)]
        if self.encodes_text:
            return [*parts, clip.text_part(c.clip, c.word_channels)]
        check_words(cards.text, clip.text_digest(c.clip), c.clip)
        return parts

    def bound(self, cards: CacheCards) -> None:
        """A last stage to be trained starts as CLIP's, where it has no weights of its own yet."""
        if not self.draws or self.last_stage is None:
            return
        clip.set_drop_path(self.trunk, self.config.clip_drop_path, self.last_stage)
        if self._untrained:
            self.last_stage.load_state_dict(self.trunk.encoder.stages[-1].state_dict())

    @property
    def trunk(self) -> Any:
        """CLIP's image tower. Raises ValueError before `bind`."""
        if clip.IMAGE_PART not in self.frozen:
            raise ValueError("SSA needs bind(cards) before it reads a batch")
        return self.frozen[clip.IMAGE_PART]

    def stages(self, trunk: Any, images: Tensor, sentence: Tensor, words: Tensor, word_mask: Tensor) -> list[Tensor]:
        """The four stages of a ConvNextModel with the adapters inside: images (F, 3, H, W), sentence (F, D), words (F, L, D),
        word_mask (F, L) -> maps (F, C_i, h, w)."""
        c = self.config
        text = Text(sentence, words, word_mask)
        return clip.stages(self.adapters, trunk, images, text, c.wiring, self.last_stage, c.checkpointing)

    def _text(self, batch: Batch) -> Text:
        if self.encodes_text:
            text: Text = self.frozen[clip.TEXT_PART](batch.sentences, self.config.longest)
            return text
        return clip.text_of(batch.words, batch.word_mask.sum(1), self.config.longest)

    # Training.

    def normalisers(self, batch: Batch) -> Mapping[str, float]:
        """Live: what the losses are divided by, see `losses.normalisers`. Cached: nothing, they are means over expressions."""
        return normalisers(self._truth(batch), self.config.queries, self.config.handed_on) if self.draws else {}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of `losses.losses`, or cached of `cached_losses.track_losses`. Raises ValueError without ground truth."""
        return self._live_loss(batch) if self.draws else self._cached_loss(batch)

    def _live_loss(self, batch: Batch) -> dict[str, Tensor]:
        """In evaluation mode frames are resized as in prediction; in training they have the size that the augmentation gave."""
        truth, text = self._truth(batch), self._text(batch)
        assert batch.pixels is not None
        divide_by = batch.normalisers or self.normalisers(batch)
        totals: dict[str, Tensor] = {}
        for i, (frames, masks) in enumerate(zip(batch.pixels, truth, strict=True)):
            pixels, masks = frames[:], masks.float()
            if not self.training:
                geometry = live.geometry_of(self, (pixels.shape[1], pixels.shape[2]))
                pixels = live.resized(pixels, geometry).to(masks.device)
                masks = F.interpolate(masks, geometry.resized, mode="nearest-exact")
            output = live.clip_output(self, pixels, text.of(i, len(pixels)))
            for name, value in losses(output, [live.clip_truth(masks)], self.config, divide_by).items():
                totals[name] = totals[name] + value if name in totals else value
        return totals

    def _truth(self, batch: Batch) -> tuple[Tensor, ...]:
        if batch.truth is None:
            raise ValueError("SSA's loss needs Batch.truth; this split hides its ground truth")
        return batch.truth

    def _cached_loss(self, batch: Batch) -> dict[str, Tensor]:
        if batch.overlap is None:
            raise ValueError("SSA's loss needs Batch.overlap; this split hides its ground truth")
        output = cached.track_output(self, batch, self._text(batch), self.config.handed_on)
        return track_losses(output, batch.overlap, batch.word_mask.any(1), self.config)

    # Prediction.

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, Q) of queries, or cached (B, N) of tracks, whose sigmoid is p(referred); -inf of a track that no frame shows."""
        if self.draws:
            text = self._text(batch)
            return torch.stack([self._answer(batch, row, text).logits for row in range(len(batch))])
        return cached.track_logits(self, batch, self._text(batch))

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        """The scores of one expression after another. Live, its mask features are kept until the next one where they fit."""
        frames: live.InputFrames | None = None
        for row in range(video.expressions):
            batch = video.batch([row])
            if not self.draws:
                yield Scored(batch, self(batch))
                continue
            frames = frames or self._frames(batch, 0)
            answer = self._answer(batch, 0, self._text(batch), frames)
            yield Scored(batch, answer.logits[None], answer.masks)

    def draw(self, batch: Batch, queries: Tensor) -> Iterator[Tensor]:
        """Live: the masks of the queries marked in bool (1, Q) of one expression, see `Selector.draw`."""
        if len(batch) != 1:
            raise ValueError(f"{len(batch)} expressions: expected one")
        return self._answer(batch, 0, self._text(batch)).masks(queries)

    def _frames(self, batch: Batch, owner: int) -> live.InputFrames:
        """The real frames of a video of the batch."""
        assert batch.pixels is not None
        pixels, length = batch.pixels[owner], int(batch.frame_mask[owner].sum())
        geometry = live.geometry_of(self, (pixels.shape[1], pixels.shape[2]))
        return live.InputFrames(pixels, length, geometry, batch.tokens.device, self.config.keep_bytes)

    def _answer(self, batch: Batch, row: int, text: Text, frames: live.InputFrames | None = None) -> live.Answer:
        """text: of all expressions of the batch; frames: of the video of expression `row`, by default read anew."""
        own = Text(*(part[row : row + 1] for part in text))
        owner = min(row, len(batch.sizes) - 1)
        return live.answer(self, frames or self._frames(batch, owner), own, batch.sizes[owner])


def _trained(module: nn.Module, _: Any) -> None:
    module._untrained = False  # type: ignore[assignment]
