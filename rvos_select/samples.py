"""Everything a run trains on, held in memory, and the batches made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.text.cues import cue
from rvos_cache.types import Expression, Words
from rvos_select.caches import TextSource, TrackSource, candidates
from rvos_select.data import Batch
from rvos_select.labels import mean_iou, target_indices, track_targets


@dataclass(frozen=True)
class VideoSample:
    """One video: tokens (N, T, C) as stored, presence (N, T), and for its E expressions words, candidates (E, N) and
    targets (E, N) or None; features by name."""

    video_id: str
    tokens: Tensor
    presence: Tensor
    expressions: tuple[Expression, ...]
    words: tuple[Words, ...]
    candidates: Tensor
    target: Tensor | None
    features: dict[str, Tensor]


def load_video(
    tracks: TrackSource,
    texts: TextSource,
    video_id: str,
    *,
    label_iou: float | None = None,
    requires: Sequence[str] = (),
) -> VideoSample:
    """One video from its caches. label_iou: make targets at this mean IoU; None: do not read answers.

    Raises InputError when caches are damaged, do not fit, or hide what the targets need.
    """
    info = tracks.info(video_id)
    expressions = texts.expressions(video_id)
    known = {e.expression_id for e in expressions}
    asked = {info.expressions[p].expression_id for p in info.prompt if p >= 0}
    if asked - known:
        raise InputError(f"video {video_id}: the text cache lacks expression {min(asked - known)}; extract its words again")
    allowed = [candidates(info, e.expression_id) for e in expressions]
    target = None
    if label_iou is not None:
        quality = mean_iou(tracks.overlap(video_id))
        rows = [track_targets(quality, target_indices(e, info.object_ids), label_iou) for e in expressions]
        target = torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, info.tracks)
    features = {}
    for name in (r.removeprefix("features.") for r in requires if r.startswith("features.")):
        features[name] = torch.from_numpy(np.ascontiguousarray(tracks.feature(video_id, name)))
    return VideoSample(
        video_id,
        torch.from_numpy(np.ascontiguousarray(tracks.tokens(video_id))),
        torch.from_numpy(np.ascontiguousarray(tracks.presence(video_id))),
        expressions,
        texts.words(video_id),
        torch.from_numpy(np.stack(allowed)) if allowed else torch.zeros(0, info.tracks, dtype=torch.bool),
        target,
        features,
    )


def video_batch(sample: VideoSample, rows: Sequence[int] | None = None, requires: Sequence[str] = ()) -> Batch:
    """The expressions `rows` (default: all) of one video, sharing its tokens: leading size 1."""
    chosen = list(range(len(sample.expressions))) if rows is None else list(rows)
    words, word_mask = pad_words([sample.words[e] for e in chosen])
    index = torch.tensor(chosen, dtype=torch.long)
    tokens = sample.tokens[None].float()
    return Batch(
        tokens=tokens,
        frame_mask=torch.ones(1, tokens.shape[2], dtype=torch.bool),
        track_mask=sample.candidates[index],
        words=words,
        word_mask=word_mask,
        target=None if sample.target is None else sample.target[index],
        presence=sample.presence[None].float() if "presence" in requires else None,
        **_word_parts([sample.words[e] for e in chosen], words.shape[1], requires),
        features={name: value[None] for name, value in sample.features.items()},
    )


def padded_batch(picked: Sequence[tuple[VideoSample, int]], requires: Sequence[str] = ()) -> Batch:
    """Any expressions (video, row), padded to the longest T, N and L."""
    if len({id(sample) for sample, _ in picked}) == 1:
        return video_batch(picked[0][0], [row for _, row in picked], requires)
    b, n = len(picked), max(s.tokens.shape[0] for s, _ in picked)
    t, c = max(s.tokens.shape[1] for s, _ in picked), picked[0][0].tokens.shape[2]
    if any(s.features for s, _ in picked):
        raise InputError('features of different videos do not stack; use batch = "video"')
    tokens, presence = torch.zeros(b, n, t, c), torch.zeros(b, n, t)
    frame_mask, track_mask = torch.zeros(b, t, dtype=torch.bool), torch.zeros(b, n, dtype=torch.bool)
    target = torch.zeros(b, n) if all(s.target is not None for s, _ in picked) else None
    for i, (sample, row) in enumerate(picked):
        own, frames = sample.tokens.shape[:2]
        tokens[i, :own, :frames] = sample.tokens.float()
        presence[i, :own, :frames] = sample.presence.float()
        frame_mask[i, :frames] = True
        track_mask[i, :own] = sample.candidates[row]
        if target is not None and sample.target is not None:
            target[i, :own] = sample.target[row]
    said = [sample.words[row] for sample, row in picked]
    words, word_mask = pad_words(said)
    parts = _word_parts(said, words.shape[1], requires)
    shown = presence if "presence" in requires else None
    return Batch(tokens, frame_mask, track_mask, words, word_mask, target, shown, **parts)


def pad_words(words: Sequence[Words]) -> tuple[Tensor, Tensor]:
    """Word vectors (B, L, D) float32 and word_mask (B, L)."""
    longest = max(len(w.vectors) for w in words)
    out = torch.zeros(len(words), longest, words[0].vectors.shape[1])
    mask = torch.zeros(len(words), longest, dtype=torch.bool)
    for i, w in enumerate(words):
        out[i, : len(w.vectors)] = torch.from_numpy(w.vectors.astype(np.float32))
        mask[i, : len(w.vectors)] = True
    return out, mask


def _word_parts(words: Sequence[Words], longest: int, requires: Sequence[str]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    if "spans" in requires:
        spans: NDArray[np.int32] = np.zeros((len(words), longest, 2), np.int32)
        for i, w in enumerate(words):
            spans[i, : len(w.spans)] = w.spans
        parts["spans"] = torch.from_numpy(spans)
    for name, kind in (("motion_words", "motion"), ("static_words", "static")):
        if name in requires:
            marks = torch.zeros(len(words), longest, dtype=torch.bool)
            for i, w in enumerate(words):
                marks[i, : len(w.tags)] = torch.tensor([cue(tag) == kind for tag in w.tags])
            parts[name] = marks
    return parts


def batches(
    samples: Sequence[VideoSample],
    how: Literal["single", "video"],
    size: int,
    generator: torch.Generator | None,
    requires: Sequence[str] = (),
) -> Iterator[tuple[Batch, str]]:
    """Batches with a name for messages, in an order drawn from `generator` (None: as they come).

    how: "video" all expressions of one video, sharing its tokens; "single" `size` expressions, each with its own.
    """
    if how == "video":
        kept = [s for s in samples if s.expressions]
        for i in _order(len(kept), generator):
            yield video_batch(kept[i], None, requires), kept[i].video_id
        return
    pairs = [(sample, row) for sample in samples for row in range(len(sample.expressions))]
    order = _order(len(pairs), generator)
    for start in range(0, len(order), size):
        picked = [pairs[i] for i in order[start : start + size]]
        sample, row = picked[0]
        yield padded_batch(picked, requires), sample.expressions[row].key


def count_batches(samples: Sequence[VideoSample], how: Literal["single", "video"], size: int) -> int:
    """How many batches `batches` makes."""
    if how == "video":
        return sum(bool(s.expressions) for s in samples)
    return -(-sum(len(s.expressions) for s in samples) // size)


def _order(count: int, generator: torch.Generator | None) -> list[int]:
    return list(range(count)) if generator is None else torch.randperm(count, generator=generator).tolist()
