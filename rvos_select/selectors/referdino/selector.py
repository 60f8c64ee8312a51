"""ReferDINO's second stage: the temporal enhancer and the box head on the tracked queries of a frozen GroundingDINO.

Liang et al., "ReferDINO: Referring Video Object Segmentation with Visual Grounding Foundations", ICCV 2025, sections 3.2 and 3.4, and
the released code. The tracks of a cache of the tracker `gdino-queries` are the tracked queries of each expression, with their masks.
Letters as in `rvos_cache.types`; Q candidates of an expression.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.trackers.referdino.boxes import Mlp, refined
from rvos_cache.trackers.referdino.enhancer import Enhancer
from rvos_cache.trackers.referdino.head import class_logits
from rvos_cache.types import Overlap
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.video import InferenceVideo
from rvos_select.selectors.base import Scored, Selector
from rvos_select.selectors.referdino.box import first_box_head
from rvos_select.selectors.referdino.cached_losses import Objects, TrackOutput, normalisers, track_losses
from rvos_select.selectors.referdino.config import ReferDinoConfig
from rvos_select.selectors.referdino.tracks import (
    Candidates,
    as_candidates,
    candidates,
    objects_in,
    own_order,
    own_overlap,
    retracked,
    text_of,
)

__all__ = ["ReferDino", "ReferDinoConfig", "video_scores"]

RELEASED = {"temporal_decoder.0.": "enhancer.", "bbox_embed.0.": "box."}
"""Prefixes of released tensors -> of this module's, the first copy of each."""
QUERIES_PER_PASS = 65_536
"""Queries of all frames that one pass of `infer` enhances: half a gigabyte in the feed-forward layers."""


class Tracked(NamedTuple):
    """What is predicted of Q queries: the candidates, or the queries of each frame under another alignment.

    queries: (B, T, Q, C), enhanced; logits: float32 (B, T, Q); own: the candidates; frames: bool (B, T); places: None where query q
    is candidate q in every frame, else int64 (B, T, Q), the candidate that it is in each. In the first frame it is candidate q.
    """

    queries: Tensor
    logits: Tensor
    own: Candidates
    frames: Tensor
    places: Tensor | None


class ReferDino(Selector):
    """Scores the tracked queries of each expression: logits are those of the mean probability over the frames (Eq. 6)."""

    Config = ReferDinoConfig
    threshold = 0.2
    empty = "top1"
    top1_of_one = True
    # Its text comes from the tracks cache.
    encodes_text = True

    def __init__(self, config: ReferDinoConfig) -> None:
        super().__init__(config)
        c = self.config
        self.enhancer = Enhancer(c.token_channels, c.hidden, c.temporal_layers)
        self.box = Mlp(c.token_channels, c.token_channels, c.token_channels, 4)
        self.affine = nn.Parameter(torch.tensor([1.0, 0.0])) if c.logit_affine else None
        self._untrained = True
        self.register_load_state_dict_post_hook(_trained)  # type: ignore[no-untyped-call]

    @property
    def requires(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parts of a Batch that it reads."""
        raw = () if self.config.tracker == "cached" else ("features.raw",)
        return ("features.reference", "features.words", *raw, "frames.text", "overlap", "boxes")

    def named_as_here(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As Selector; the tensors of a released checkpoint are translated."""
        return {_own_name(name): tensor for name, tensor in tensors.items()}

    def bound(self, cards: CacheCards) -> None:
        """The box head starts as the upstream's, unless it has weights of its own. Raises InputError when those cannot be read."""
        if self._untrained and self.config.box_init == "upstream":
            self.box.load_state_dict(first_box_head(cards.tracks[0], self.box.state_dict()))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N) of each track's video score, or with another alignment than the cache's of the query that the track is in
        the first frame; 0 for tracks that are no candidates."""
        tracked = self.track(batch)
        logits = _video_logits(tracked)
        return logits.new_zeros(batch.track_mask.shape).scatter(1, tracked.own.tracks, logits)

    def infer(self, video: InferenceVideo) -> Iterator[Scored]:
        """As Selector, a group of expressions at a time. With another alignment than the cache's it scores queries with parts, as
        many for each expression as the most candidates of any."""
        most = max(1, int(video.sample.candidates[list(video.rows)].sum(1).amax()))
        size = max(1, QUERIES_PER_PASS // (most * video.frames))
        for start in range(0, video.expressions, size):
            batch = video.batch(range(start, min(start + size, video.expressions)))
            if self.config.tracker == "cached":
                yield Scored(batch, self(batch))
                continue
            tracked = self.track(batch)
            more = most - tracked.logits.shape[-1]
            parts = F.pad(_parts(tracked), (0, 0, 0, more), value=-1)
            yield Scored(batch, F.pad(_video_logits(tracked), (0, more)), parts=parts)

    def track(self, batch: Batch) -> Tracked:
        """The queries of each expression through the enhancer. A video or clip of one frame skips it, as in the released training."""
        c, own = self.config, candidates(batch.track_mask)
        text = text_of(batch, own)
        queries = own.of(batch.tokens).transpose(1, 2)
        frames = batch.frame_mask.expand(len(queries), -1)
        places = self._places(batch, own)
        if places is not None:
            if c.tracker == "retrack":
                places = retracked(queries, places, text, own.real, c.alpha, c.confidence)
            places = as_candidates(places)
            queries = _in_order(queries, places)
        several = frames.sum(1) > 1
        if queries.numel() and c.temporal_layers and several.any():
            enhanced = self.enhancer(queries, text.sentence(c.sentence_feature), frames)
            queries = torch.where(several[:, None, None, None], enhanced, queries)
        with torch.autocast(queries.device.type, enabled=False):
            logits = class_logits(queries, text.tokens, text.mask[:, None].expand(-1, queries.shape[1], -1))
            if self.affine is not None:
                logits = logits * self.affine[0] + self.affine[1]
        return Tracked(queries, logits, own, frames, places)

    def _places(self, batch: Batch, own: Candidates) -> Tensor | None:
        """int64 (B, T, Q): the candidates in the own order of each frame; None where the cache's alignment is kept."""
        if self.config.tracker == "cached":
            return None
        return own_order(own.of(batch.features["raw"]), own.real)

    # Training.

    def normalisers(self, batch: Batch) -> dict[str, float]:
        """The number of frames that show a positive's object, see `cached_losses.normalisers`."""
        if batch.boxes is None or batch.overlap is None:
            return {}
        own = candidates(batch.track_mask)
        # Positives of another alignment's queries are not counted: `union_single` has one in any, and Config refuses the rest.
        places = None if self.config.tracker == "retrack" else self._places(batch, own)
        places = None if places is None else as_candidates(places)
        return normalisers(_objects(batch), _overlaps(batch, own, places), own.real, batch.word_mask.any(1), self.config.losses())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """cls, l1 and giou, sums divided by the number of frames that show a positive's object, and `loss`, their weighted sum.

        Raises ValueError without ground truth.
        """
        if batch.boxes is None or batch.overlap is None:
            raise ValueError("ReferDINO's loss needs Batch.boxes and Batch.overlap; this split hides its ground truth")
        tracked = self.track(batch)
        reference = tracked.own.of(batch.features["reference"]).transpose(1, 2)
        if tracked.places is not None:
            reference = _in_order(reference, tracked.places)
        boxes = refined(self.box(tracked.queries).float(), reference.float())
        output = TrackOutput(tracked.logits, boxes, tracked.own.real, tracked.frames)
        overlaps = _overlaps(batch, tracked.own, tracked.places)
        divide_by = batch.normalisers or None
        return track_losses(output, _objects(batch), overlaps, batch.word_mask.any(1), self.config.losses(), divide_by)


def video_scores(logits: Tensor, frames: Tensor | None = None) -> Tensor:
    """Scores (B, Q) of logits (B, T, Q): the mean over the frames of their sigmoids (Eq. 6). frames: bool (B, T), those that count."""
    scores = logits.sigmoid()
    if frames is None:
        return scores.mean(1)
    return scores.masked_fill(~frames[..., None], 0).sum(1) / frames.sum(1).clamp(min=1)[:, None]


def _in_order(values: Tensor, places: Tensor) -> Tensor:
    """values (B, T, Q, ...) of the candidates -> of the queries that are candidate places (B, T, Q) in each frame."""
    return values.gather(2, places[..., None].expand(*places.shape, values.shape[-1]))


def _video_logits(tracked: Tracked) -> Tensor:
    """The logits (B, Q) whose sigmoids are the video scores; 0 in padding."""
    # Not torch.logit, whose eps would make the scores of all poor queries equal: the best of them may be selected.
    p = video_scores(tracked.logits, tracked.frames).clamp(1e-30, 1 - 2**-24)
    return torch.where(tracked.own.real, p.log() - (-p).log1p(), 0.0)


def _parts(tracked: Tracked) -> Tensor:
    """`Scored.parts`, int64 (B, Q, T), of queries with `places`."""
    assert tracked.places is not None
    parts = tracked.own.tracks[:, None].expand_as(tracked.places).gather(2, tracked.places)
    return parts.masked_fill(~tracked.own.real[:, None], -1).transpose(1, 2)


def _overlaps(batch: Batch, own: Candidates, places: Tensor | None) -> list[Overlap]:
    """Of each expression the counts of its queries."""
    assert batch.overlap is not None
    out = []
    for b, overlap in enumerate(batch.overlap):
        tracks = own.tracks[b, own.real[b]]
        out.append(own_overlap(overlap, tracks, None if places is None else places[b, :, : len(tracks)]))
    return out


def _objects(batch: Batch) -> list[Objects]:
    assert batch.boxes is not None
    sizes = batch.sizes if len(batch.sizes) > 1 else batch.sizes * len(batch.boxes)
    return [objects_in(boxes, size) for boxes, size in zip(batch.boxes, sizes, strict=True)]


def _own_name(name: str) -> str:
    prefix = next((prefix for prefix in RELEASED if name.startswith(prefix)), "")
    return RELEASED[prefix] + name.removeprefix(prefix) if prefix else name


def _trained(module: nn.Module, _: Any) -> None:
    module._untrained = False  # type: ignore[assignment]
