"""SOLA: selection of tracks by object-language alignment (https://github.com/cvlab-kaist/SOLA).

Its paper and its released code differ in the memory, the score and the losses; `variant` names which is followed. The
published numbers come from the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_select.data.batch import Batch
from rvos_select.data.mask_facts import MaskFacts
from rvos_select.data.samples import VideoSample
from rvos_select.losses.tracks import alignment_code, alignment_paper, bce
from rvos_select.selectors.base import Selector, load_strictly
from rvos_select.selectors.sola.config import SolaConfig
from rvos_select.selectors.sola.layers import (
    AlignmentLayer,
    MotionEncoder,
    WhitenedProjection,
    masked_mean,
    shorter,
    temporal_code,
    within,
)


class Aligned(NamedTuple):
    """What scores and losses read: logits (B, N), objects O_a (B, N, D), anchor mean(E) (B, D)."""

    logits: Tensor
    objects: Tensor
    anchor: Tensor


class Sola(Selector):
    """Scores tracks by their aligned tokens; reads tokens and words only."""

    Config = SolaConfig
    static_shapes = True

    def __init__(self, config: SolaConfig) -> None:
        super().__init__(config)
        c = self.config
        d = c.aligned
        self.word_projection = None if c.align_width is None else WhitenedProjection(c.word_channels, d)
        self.short_motion_encoder = MotionEncoder(c.token_channels, c.width, d, c.motion_dropout)
        layers = [AlignmentLayer(d, c.heads, c.attention_dropout, c.attention) for _ in range(c.layers)]
        self.object_lang_align_layers = nn.ModuleList(layers)
        self.negative_token = nn.Embedding(c.negatives, d)
        self.positional_encoding_gaussian_matrix: Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(1, d // 2))

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load the released checkpoint's tensors in place.

        Raises InputError, with nothing loaded, for a missing or unexpected name or another shape.
        """
        load_strictly(self, state, "the released SOLA weights")

    def fit(self, videos: Sequence[VideoSample]) -> None:
        """With `align_width`: take the statistics of the words of the different training sentences."""
        if self.word_projection is not None:
            words = {e.text: each.vectors for video in videos for e, each in zip(video.expressions, video.words)}
            self.word_projection.fit(torch.from_numpy(vectors) for vectors in words.values())

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N); 0 outside `batch.track_mask`. Real frames come first in `frame_mask`."""
        return self.align(batch).logits

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: "loss" = bce_weight · "bce" + align_weight · "align". Raises ValueError without a target."""
        if batch.target is None:
            raise ValueError("SOLA's loss needs Batch.target; this split hides its ground truth")
        c, aligned = self.config, self.align(batch)
        target = batch.target.to(aligned.logits.dtype)
        counted = batch.word_mask.any(1)
        positive = c.positive_weight or (1.5 if c.variant == "code" else 1.0)
        # in float32 whatever the autocast: scores are sums over D
        with torch.autocast(aligned.logits.device.type, enabled=False):
            bce_loss = bce(aligned.logits, target, batch.track_mask, counted, positive)
            negatives = self.negative_token.weight
            parts = (aligned.objects, aligned.anchor, negatives, target, batch.track_mask, counted)
            align = alignment_code(*parts, c.align_positive_weight) if c.variant == "code" else alignment_paper(*parts)
            return {"loss": c.bce_weight * bce_loss + c.align_weight * align, "bce": bce_loss, "align": align}

    def align(self, batch: Batch) -> Aligned:
        """Run the module; tracks that no expression may select are left out of the computation."""
        facts = batch.mask_facts
        if not batch.track_mask.shape[1]:
            # A reshape cannot infer the sizes of an empty tensor: one padded track stands for none.
            tokens, tracks = F.pad(batch.tokens, (0, 0, 0, 0, 0, 1)), F.pad(batch.track_mask, (0, 1))
            padded = replace(facts, tracks_real=False, candidate_sets=None, set_of=None)
            none = self._align(tokens, batch.frame_mask, tracks, batch.words, batch.word_mask, padded)
            return Aligned(none.logits[:, :0], none.objects[:, :0], none.anchor)
        at = facts.used
        if at is None:
            return self._align(batch.tokens, batch.frame_mask, batch.track_mask, batch.words, batch.word_mask, facts)
        if facts.candidate_sets is not None:
            facts = replace(facts, candidate_sets=facts.candidate_sets[:, at])
        tokens, tracks = batch.tokens[:, at], batch.track_mask[:, at]
        part = self._align(tokens, batch.frame_mask, tracks, batch.words, batch.word_mask, facts)
        b, n = batch.track_mask.shape
        logits = part.logits.new_zeros(b, n).index_copy(1, at, part.logits)
        objects = part.objects.new_zeros(b, n, part.objects.shape[-1]).index_copy(1, at, part.objects)
        return Aligned(logits, objects, part.anchor)

    def _align(
        self, tokens: Tensor, frames: Tensor, tracks: Tensor, words: Tensor, word_mask: Tensor, facts: MaskFacts
    ) -> Aligned:
        """tokens (B or 1, N, T, C), frames (B or 1, T), tracks (B, N), words (B, L, D), word_mask (B, L); facts of these masks."""
        words = words.to(self.negative_token.weight.dtype)
        if self.word_projection is not None:
            words = self.word_projection(words)
        x, reduced = self._encode(tokens, frames, facts)
        t = x.shape[2]
        code = temporal_code(self.positional_encoding_gaussian_matrix, t).to(x.dtype)
        all_tracks = None if facts.tracks_real else tracks
        all_words = None if facts.words_real else word_mask
        negatives = self.negative_token.weight if self.config.variant == "code" else None
        rows: Tensor | None = None
        layers = [layer for layer in self.object_lang_align_layers if isinstance(layer, AlignmentLayer)]
        first_tracks = all_tracks
        if len(x) < len(tracks):
            # One video, several expressions: what reads no text is computed once for each set of candidates.
            sets, rows = tracks[:1], facts.set_of
            if facts.candidate_sets is not None:
                sets = facts.candidate_sets
            x = x.expand(len(sets), -1, -1, -1)
            first_tracks = None if all_tracks is None else sets
        x = layers[0].attend_tracks_and_time(x, code, first_tracks, reduced)
        x = layers[0].attend_memory(x, rows, words, negatives, all_words, all_tracks, reduced)
        for layer in layers[1:]:
            x = layer.attend_tracks_and_time(x, code, all_tracks, reduced)
            x = layer.attend_memory(x, None, words, negatives, all_words, all_tracks, reduced)
        with torch.autocast(x.device.type, enabled=False):
            return self._aggregate(x.float(), reduced, tracks, words.float(), all_words)

    def _encode(self, tokens: Tensor, frames: Tensor, facts: MaskFacts) -> tuple[Tensor, Tensor | None]:
        """tokens (V, N, T, C), frames (V, T) -> (V, N, T′, D) and the mask (V, T′), None where all is real."""
        a, n, t, c = tokens.shape
        lengths = None
        if not facts.frames_real:
            if not facts.frames_first:
                raise ValueError("Batch.frame_mask: real frames must come first; padding goes behind them")
            lengths = frames.sum(1)
        flat = tokens.to(self.negative_token.weight.dtype).reshape(a * n, t, c)
        x = self.short_motion_encoder(flat, None if lengths is None else lengths[:, None].expand(-1, n).reshape(-1))
        x = x.reshape(a, n, x.shape[1], -1)
        if lengths is None:
            return x, None
        for _ in range(3):
            lengths = shorter(lengths, 2)
        return x, within(lengths, x.shape[2])

    def _aggregate(self, x: Tensor, frames: Tensor | None, tracks: Tensor, words: Tensor, word_mask: Tensor | None) -> Aligned:
        """Score and object vector from aligned tokens x (B, N, T′, D): Eqs. 4 and 5, or the released code's form."""
        anchor = masked_mean(words, word_mask)
        coded = self.config.variant == "code"
        # the mean over the memory of O′·Eᵀ is O′ times the memory's mean
        memory = masked_mean(words, word_mask, [self.negative_token.weight.float()]) if coded else anchor
        per_frame = torch.einsum("bntd,bd->bnt", x, memory)
        if frames is None:
            # A fill, not a copy of a number of the host, which a GPU waits for.
            weights, count = per_frame.softmax(-1), torch.full((), float(x.shape[2]), device=x.device)
        else:
            real = frames[:, None].expand_as(per_frame)
            # an expression of padding may have no frame at all: a finite filler keeps its softmax a number
            weights = per_frame.masked_fill(~real, torch.finfo(x.dtype).min).softmax(-1).masked_fill(~real, 0.0)
            per_frame, count = per_frame.masked_fill(~real, 0.0), frames.sum(1).clamp(min=1)[:, None]
        objects = torch.einsum("bnt,bntd->bnd", weights, x)
        if coded:
            logits = torch.einsum("bnd,bd->bn", objects, memory)
        else:
            objects, logits = objects / (count if frames is None else count[..., None]), per_frame.sum(-1) / count
        return Aligned(logits.masked_fill(~tracks, 0.0), objects, anchor)
