"""Everything a run trains on, held in memory, and the batches made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_cache.text.cues import DEFAULT_TAGGER, Tagger, cue, particles
from rvos_cache.types import Cue, Expression, GroundTruth, Overlap, Words
from rvos_select.data.batch import Batch
from rvos_select.data.caches import TextSource, TrackSource, candidates
from rvos_select.data.features import StoredFeature
from rvos_select.data.labels import mean_iou, target_indices, track_targets


def _cues(kind: Cue, tags: Sequence[str], tagger: Tagger) -> list[bool]:
    return [cue(tag, tagger) == kind for tag in tags]


WORD_MARKS: dict[str, Callable[[Sequence[str], Tagger], list[bool]]] = {
    "motion_words": partial(_cues, "motion"),
    "static_words": partial(_cues, "static"),
    "particle_words": particles,
}
"""Part of a Batch -> the words that it marks."""

OVERLAP_OF_VIDEO = "overlap.video"
"""As a part of a Batch: counts in all frames, of clips too."""


@dataclass(frozen=True)
class VideoSample:
    """One video: tokens (N, T, C) as stored, presence (N, T), and for its E expressions words, candidates (E, N) and
    targets (E, N) or None; features by name; set_name: the set it belongs to, "dataset/split".

    What a selector may ask for: frames, arrays on disk that are read by frames; overlap and truth, with named, the places of each
    expression's objects among them. size: (H, W) of the frames; time: feature -> its axis of frames, where it has one; tagger:
    what made the tags of the words.
    """

    video_id: str
    tokens: Tensor
    presence: Tensor
    expressions: tuple[Expression, ...]
    words: tuple[Words, ...]
    candidates: Tensor
    target: Tensor | None
    features: dict[str, Tensor]
    set_name: str = ""
    frames: Mapping[str, StoredFeature] = field(default_factory=dict)
    overlap: Overlap | None = None
    truth: GroundTruth | None = None
    named: tuple[tuple[int, ...], ...] | None = None
    size: tuple[int, int] = (0, 0)
    time: Mapping[str, int] = field(default_factory=dict)
    tagger: Tagger = DEFAULT_TAGGER


def set_name(card: Card) -> str:
    """The set of a cache, "dataset/split"."""
    return f"{card.dataset}/{card.split}"


def set_weights(cards: Sequence[Card], weights: Mapping[str, float]) -> dict[str, float]:
    """Set -> its weight: that of "dataset/split", else that of "dataset", else 1. Raises InputError for a name of no set."""
    known = {set_name(card): card.dataset for card in cards}
    names = sorted({*known, *known.values()})
    for name in weights:
        if name not in names:
            raise InputError(f"weights: no training cache is of {name!r}; there are: {', '.join(names)}")
    return {name: weights.get(name, weights.get(dataset, 1.0)) for name, dataset in sorted(known.items())}


def label_limits(tracks: TrackSource, label_iou: float | None) -> dict[str, float]:
    """Cache -> mean IoU above which its tracks are positives: label_iou, or where it is None what the cache's card says.

    Raises InputError for a card that says nothing.
    """
    found = {}
    for cache in tracks.caches:
        limit = label_iou or cache.card.label_iou
        if limit is None:
            raise InputError(f"{cache.path}: its card gives no label threshold; --set label_iou=0.7 (strictly between 0 and 1)")
        found[cache.path] = limit
    return found


def load_video(
    tracks: TrackSource,
    texts: TextSource,
    video_id: str,
    *,
    limits: Mapping[str, float] | None = None,
    requires: Sequence[str] = (),
) -> VideoSample:
    """One video from its caches. limits: make targets, of each cache's tracks at its own mean IoU; None: do not read answers.

    Raises InputError when caches are damaged, do not fit, or hide what the targets need.
    """
    info = tracks.info(video_id)
    expressions = texts.expressions(video_id)
    known = {e.expression_id for e in expressions}
    asked = {info.expressions[p].expression_id for p in info.prompt if p >= 0}
    if asked - known:
        raise InputError(f"video {video_id}: the text cache lacks expression {min(asked - known)}; extract its words again")
    allowed = [candidates(info, e.expression_id) for e in expressions]
    target = named = None
    held = tracks.of[video_id]
    if limits is not None:
        parts = [(mean_iou(cache.overlap(video_id)), limits[cache.path]) for cache in held]
        named = [target_indices(e, info.object_ids) for e in expressions]
        rows = [np.concatenate([track_targets(quality, n, limit) for quality, limit in parts]) for n in named]
        target = torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, info.tracks)
    wanted = [r.partition(".")[::2] for r in requires]
    features, time = {}, {}
    for name in (name for kind, name in wanted if kind == "features"):
        value = tracks.feature(video_id, name)
        cache = tracks.having(video_id, name)
        dims = next(s["dims"] for s in cache.card.feature_specs if s["name"] == name)
        if "N" in dims and value.shape[dims.index("N")] != info.tracks:
            raise InputError(
                f"{cache.path}, video {video_id}: the feature {name!r} is of its own tracks, {info.tracks} of several caches "
                "were given; give this cache alone"
            )
        features[name] = torch.from_numpy(np.ascontiguousarray(value))
        if "T" in dims:
            time[name] = dims.index("T")
    return VideoSample(
        video_id,
        torch.from_numpy(np.ascontiguousarray(tracks.tokens(video_id))),
        torch.from_numpy(np.ascontiguousarray(tracks.presence(video_id))),
        expressions,
        texts.words(video_id),
        torch.from_numpy(np.stack(allowed)) if allowed else torch.zeros(0, info.tracks, dtype=torch.bool),
        target,
        features,
        set_name(held[0].card),
        {name: StoredFeature(tracks, video_id, name) for kind, name in wanted if kind == "frames"},
        tracks.overlap(video_id) if named is not None and "overlap" in (kind for kind, _ in wanted) else None,
        tracks.ground_truth(video_id) if named is not None and ("truth", "") in wanted else None,
        None if named is None else tuple(map(tuple, named)),
        info.size,
        time,
        texts.tagger(video_id) if WORD_MARKS.keys() & set(requires) else DEFAULT_TAGGER,
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
        **word_parts([(sample, e) for e in chosen], words.shape[1], requires),
        features={name: value[None] for name, value in sample.features.items()},
        frames={name: (stored,) for name, stored in sample.frames.items()},
        overlap=overlaps([(sample, e) for e in chosen]),
        sizes=(sample.size,),
    )


def padded_batch(picked: Sequence[tuple[VideoSample, int]], requires: Sequence[str] = ()) -> Batch:
    """Any expressions (video, row), padded to the longest T, N and L."""
    if len({id(sample) for sample, _ in picked}) == 1:
        return video_batch(picked[0][0], [row for _, row in picked], requires)
    b, n = len(picked), max(s.tokens.shape[0] for s, _ in picked)
    t, c = max(s.tokens.shape[1] for s, _ in picked), picked[0][0].tokens.shape[2]
    if any(s.features or s.frames for s, _ in picked):
        raise InputError('features of videos of different lengths do not stack; use batch = "clip" or batch = "video"')
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
    words, word_mask = pad_words([sample.words[row] for sample, row in picked])
    parts = word_parts(picked, words.shape[1], requires)
    shown = presence if "presence" in requires else None
    counts = overlaps(picked)
    return Batch(tokens, frame_mask, track_mask, words, word_mask, target, shown, **parts, overlap=counts)


def overlaps(
    picked: Sequence[tuple[VideoSample, int]], frames: Sequence[Sequence[int]] | None = None
) -> tuple[Overlap, ...] | None:
    """For each expression (video, row) the counts of all tracks with its own objects; None where they were not asked for.

    frames: of each expression, those that are counted (default: all).
    """
    out = []
    for i, (sample, row) in enumerate(picked):
        held = sample.overlap
        if held is None or sample.named is None:
            return None
        own, at = list(sample.named[row]), slice(None) if frames is None else list(frames[i])
        out.append(Overlap(held.inter[:, own][:, :, at], held.area[:, at], held.gt_area[own][:, at], held.annotated[at]))
    return tuple(out)


def pad_words(words: Sequence[Words]) -> tuple[Tensor, Tensor]:
    """Word vectors (B, L, D) float32 and word_mask (B, L)."""
    longest = max(len(w.vectors) for w in words)
    out = torch.zeros(len(words), longest, words[0].vectors.shape[1])
    mask = torch.zeros(len(words), longest, dtype=torch.bool)
    for i, w in enumerate(words):
        out[i, : len(w.vectors)] = torch.from_numpy(w.vectors.astype(np.float32))
        mask[i, : len(w.vectors)] = True
    return out, mask


def word_parts(picked: Sequence[tuple[VideoSample, int]], longest: int, requires: Sequence[str]) -> dict[str, Any]:
    """The parts of a Batch in `requires` that words have beside their vectors: spans (B, L, 2), motion_words, static_words and
    particle_words (B, L), L = `longest`. picked: B expressions (video, row); which words are cues is told by the tags of their
    own tagger."""
    parts: dict[str, Any] = {}
    if "spans" in requires:
        spans: NDArray[np.int32] = np.zeros((len(picked), longest, 2), np.int32)
        for i, (sample, row) in enumerate(picked):
            spans[i, : len(sample.words[row].spans)] = sample.words[row].spans
        parts["spans"] = torch.from_numpy(spans)
    for name, marked in WORD_MARKS.items():
        if name in requires:
            marks = torch.zeros(len(picked), longest, dtype=torch.bool)
            for i, (sample, row) in enumerate(picked):
                tags = sample.words[row].tags
                marks[i, : len(tags)] = torch.tensor(marked(tags, sample.tagger))
            parts[name] = marks
    return parts


Joining = Callable[[Sequence[tuple[VideoSample, int]], Sequence[str]], Batch]


def batches(
    samples: Sequence[VideoSample],
    how: Literal["single", "video"],
    size: int,
    generator: torch.Generator | None,
    requires: Sequence[str] = (),
    weights: Mapping[str, float] = {},
    join: Joining = padded_batch,
) -> Iterator[tuple[Batch, str]]:
    """Batches with a name for messages, in an order drawn from `generator` (None: as they come).

    how: "video" all expressions of one video, sharing its tokens; "single" `size` expressions, each with its own.
    weights: set -> how often its videos, or expressions, come; 1 where nothing is said. See `drawn`.
    join: makes a batch of the expressions of "single".
    """
    if how == "video":
        kept = [s for s in samples if s.expressions]
        for i in drawn([s.set_name for s in kept], weights, generator):
            yield video_batch(kept[i], None, requires), kept[i].video_id
        return
    pairs = [(sample, row) for sample in samples for row in range(len(sample.expressions))]
    order = drawn([sample.set_name for sample, _ in pairs], weights, generator)
    for start in range(0, len(order), size):
        picked = [pairs[i] for i in order[start : start + size]]
        sample, row = picked[0]
        yield join(picked, requires), sample.expressions[row].key


def drawn(sets: Sequence[str], weights: Mapping[str, float], generator: torch.Generator | None) -> list[int]:
    """The items of an epoch in an order drawn from `generator` (None: as they come, first ones first).

    sets: the set of each item. A set of n items and weight w gives `set_draws(n, w)` of them: each one as often as goes into
    that, and others drawn without replacement for what is left.
    """
    of: dict[str, list[int]] = {}
    for i, name in enumerate(sets):
        of.setdefault(name, []).append(i)
    found: list[int] = []
    for name, items in sorted(of.items()):
        whole, part = divmod(set_draws(len(items), weights.get(name, 1.0)), len(items))
        found += items * whole
        if part:
            found += [items[i] for i in _order(len(items), generator)[:part]]
    # As they came, so that weights of 1 are the same run as none.
    found.sort()
    return [found[i] for i in _order(len(found), generator)]


def set_draws(count: int, weight: float) -> int:
    """How many items a set of `count` gives to an epoch: count · weight, rounded half up, and at least one of any."""
    return max(1, int(count * weight + 0.5)) if count else 0


def set_sizes(samples: Sequence[VideoSample], how: Literal["single", "video"]) -> dict[str, int]:
    """Set -> its items, videos with expressions or expressions, as `batches` counts them."""
    found: dict[str, int] = {}
    for s in samples:
        count = len(s.expressions) if how == "single" else int(bool(s.expressions))
        found[s.set_name] = found.get(s.set_name, 0) + count
    return found


def count_batches(
    samples: Sequence[VideoSample], how: Literal["single", "video"], size: int, weights: Mapping[str, float] = {}
) -> int:
    """How many batches `batches` makes."""
    items = sum(set_draws(count, weights.get(name, 1.0)) for name, count in set_sizes(samples, how).items())
    return items if how == "video" else -(-items // size)


def _order(count: int, generator: torch.Generator | None) -> list[int]:
    return list(range(count)) if generator is None else torch.randperm(count, generator=generator).tolist()
