"""DeRVOS: referring video object segmentation as a choice among the consistent tracks of a frozen DVIS++ (CVPR 2026).

TAIS matches each track with the words and patches of a frozen BEiT-3, which reads every frame together with the expression. The full
text and the code are not public; what the summary leaves open is a setting. Letters as in `rvos_cache.types`; R expressions of a pass,
P patches, Cq, Cm, D channels of tracks, mask features and words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.video import InferenceVideo
from rvos_select.merging.policy import Empty
from rvos_select.selectors.base import Scored, Selector
from rvos_select.selectors.dervos import beit3, caches
from rvos_select.selectors.dervos.caches import MAPS
from rvos_select.selectors.dervos.config import DervosConfig
from rvos_select.selectors.dervos.losses import matched_parts, track_losses
from rvos_select.selectors.dervos.tais import Tais
from rvos_select.selectors.frozen import FrozenPart
from rvos_select.selectors.matching import NO_OBJECT, REFERRED

__all__ = ["Dervos", "DervosConfig"]


class Clip(NamedTuple):
    """What TAIS and BEiT-3 read of the frames of a batch, read once for all of its expressions.

    q: (V, N, T, Cq); maps: (V, T, P, Cm), or None; images: uint8 (V, T, S, S, 3), or None; times: int64 (V, T).
    """

    q: Tensor
    maps: Tensor | None
    images: Tensor | None
    times: Tensor


class Dervos(Selector):
    """Scores the tracks of a cache by TAIS."""

    Config = DervosConfig
    threshold = 0.5
    top1_of_one = True

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.tais = Tais(self.config)
        self.store = beit3.OutputStore(self.config.store_bytes)

    @classmethod
    def config_values(cls, values: Mapping[str, Any], cards: CacheCards) -> dict[str, Any]:
        """Channels are those of the caches; the size and the filter of frames those of a cache of frames, where there is one."""
        return {**super().config_values(values, cards), **caches.settings_of(values, cards.tracks)}

    @property
    def requires(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parts of a Batch that it reads; after `bind`."""
        c = self.config
        parts = matched_parts(c)
        if c.understanding == "beit3":
            parts += ("pixels", "word_ids")
        if c.tais == "full" and c.map_channels:
            parts += (f"frames.{MAPS}",)
        if c.tais == "full" and c.mgis:
            parts += ("spans", "motion_words", *(("particle_words",) if c.cues == "particles" else ()))
        return (*parts, *(("features.q_v", "features.query") if c.queries == "q_v" else ()))

    @property
    def empty(self) -> Empty:  # type: ignore[override]
        """What is selected where no score is above the threshold."""
        return self.config.empty

    # Frozen BEiT-3.

    def frozen_parts(self, cards: CacheCards) -> Sequence[FrozenPart]:
        """BEiT-3, from the checkpoint that the text caches' cards name.

        Raises InputError for caches that do not fit the settings.
        """
        c = self.config
        caches.check_cards(cards.tracks, c)
        return [beit3.frozen_part(cards.text, c.side, c.word_channels)] if c.understanding == "beit3" else []

    def advice(self, part: str) -> str:
        """Matching can do without the measurements of soft masks."""
        return "--set config.match_cost=counts, which needs no measurement" if part.startswith("measured.soft") else ""

    def bound(self, cards: CacheCards) -> None:
        """Outputs that are kept are of the frozen part that was bound before."""
        self.store.clear()

    def autocast(self, device: torch.device) -> torch.autocast:
        """What BEiT-3 and TAIS are computed under: `config.precision`."""
        bf16 = self.config.precision == "bf16" or (self.config.precision == "auto" and device.type == "cuda")
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    # TAIS.

    def score(
        self,
        q: Tensor,
        maps: Tensor | None,
        vision: Tensor | None,
        words: Tensor,
        word_mask: Tensor,
        motion_words: Tensor,
        track_mask: Tensor,
        frame_mask: Tensor,
        times: Tensor,
        is_word: Tensor | None = None,
    ) -> Tensor:
        """S_f, float32 (B, N, T, 2): the scores "referred" and "no object" of each track in each frame, before the softmax.

        q: (B, N, T, Cq); maps: (B, T, P, Cm), cells of a square in rows; vision: (B, T, P, D); both None where the settings have
        none; words: (B, T, L, D), or (B, 1, L, D) where they are the same in all frames; word_mask, motion_words: bool (B, L);
        track_mask: bool (B, N); frame_mask: bool (B, T); times: (B, T), numbers of the frames in their video; is_word: bool (B, L),
        the words that are none of the encoder's special ones, by default all.
        """
        with self.autocast(q.device):
            scores: Tensor = self.tais(q, maps, vision, words, word_mask, motion_words, track_mask, frame_mask, times, is_word)
            return scores.float()

    def frame_scores(self, batch: Batch) -> Tensor:
        """S_f (B, N, T, 2) of a batch. Without a gradient at most `pairs_per_pass` pairs of frame and expression are read at once."""
        clip = self._clip(batch)
        rows = range(len(batch))
        size = len(rows) if torch.is_grad_enabled() else max(1, self.config.pairs_per_pass // clip.times.shape[1])
        parts = [self._pass(batch, clip, rows[first : first + size]) for first in range(0, len(rows), size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _clip(self, batch: Batch) -> Clip:
        """What the expressions of a batch share."""
        c, device = self.config, batch.tokens.device
        assert batch.frame_index is not None
        q = caches.video_queries(batch) if c.queries == "q_v" else batch.tokens
        maps = images = None
        if f"frames.{MAPS}" in self.requires:
            maps = torch.stack([array[:].to(device).float() for array in batch.frames[MAPS]]).flatten(2, 3)
        if c.understanding == "beit3":
            assert batch.pixels is not None
            images = torch.stack([beit3.images(array, c.side, c.resample) for array in batch.pixels]).to(device)
        return Clip(q, maps, images, batch.frame_index)

    def _pass(self, batch: Batch, clip: Clip, rows: range) -> Tensor:
        """S_f (R, N, T, 2) of the expressions `rows`."""
        r, lead = slice(rows.start, rows.stop), len(clip.q)

        def own(values: Tensor) -> Tensor:
            return values[r] if lead > 1 else values.expand(len(rows), *values.shape[1:])

        mask, frames = batch.word_mask[r], own(batch.frame_mask)
        vision, words = None, batch.words[r, None].to(clip.q.dtype)
        if clip.images is not None:
            vision, words = self._understood(batch, own(clip.images), r)
        is_word, motion = None, torch.zeros_like(mask)
        if batch.motion_words is not None:
            assert batch.spans is not None
            is_word = mask & (batch.spans[r, :, 1] > batch.spans[r, :, 0])
            motion = batch.motion_words[r] & is_word
            if batch.particle_words is not None:
                motion = motion | (batch.particle_words[r] & is_word)
        maps = None if clip.maps is None else own(clip.maps)
        tracks = batch.track_mask[r]
        return self.score(own(clip.q), maps, vision, words, mask, motion, tracks, frames, own(clip.times), is_word)

    def _understood(self, batch: Batch, images: Tensor, rows: slice) -> tuple[Tensor | None, Tensor]:
        """F_v (R, T, P, D), None where TAIS does not read it, and F_t (R, T, L, D) of BEiT-3."""
        assert batch.word_ids is not None
        if beit3.NAME not in self.frozen:
            raise ValueError("DeRVOS needs bind(cards) of its caches before it reads a batch")
        c, ids, mask = self.config, batch.word_ids[rows], batch.word_mask[rows]
        with torch.no_grad(), self.autocast(images.device):
            return self.store.read(self.frozen[beit3.NAME], images, ids, mask, c.pairs_per_pass, c.reads_patches)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N): the mean over the real frames of S_f[referred] - S_f[no object]."""
        return self._sum(batch) / batch.frame_mask.sum(1).clamp(min=1)[:, None]

    def _sum(self, batch: Batch) -> Tensor:
        """(B, N): the sum over the real frames of S_f[referred] - S_f[no object]."""
        scores = self.frame_scores(batch)
        difference = scores[..., REFERRED] - scores[..., NO_OBJECT]
        return difference.masked_fill(~batch.frame_mask[:, None], 0.0).sum(2)

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        """All expressions at once, from sums over clips: memory grows neither with T nor, but for the sums, with E."""
        if self.config.inference == "whole":
            yield from super().infer(video)
            return
        total: Tensor | None = None
        for frames in dilated(video.frames, self.config.clip_frames):
            batch = video.batch(frames=frames)
            total = self._sum(batch) if total is None else total + self._sum(batch)
        assert total is not None
        yield Scored(batch, total / video.frames)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of `losses.track_losses`. Raises ValueError without ground truth."""
        return track_losses(self.frame_scores(batch), batch, self.config)


def dilated(frames: int, most: int) -> list[range]:
    """The frames 0 … `frames` - 1 in s = ⌈frames / most⌉ clips, clip i with the frames i, i + s, i + 2 s, …"""
    step = math.ceil(frames / most)
    return [range(first, frames, step) for first in range(step)]
