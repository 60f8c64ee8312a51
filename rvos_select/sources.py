"""What a training run reads: its caches as samples in memory, what is held out, and what is missing."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvos_cache.datasets.mirrored import SUFFIX
from rvos_cache.errors import InputError
from rvos_cache.extract import failed_videos
from rvos_select.caches import TextSource, TrackSource, texts_of
from rvos_select.checkpoint import same_words
from rvos_select.samples import VideoSample, label_limits, load_video, set_weights


@dataclass
class Sources:
    """What a run reads: samples to train on and to validate with, and the validation caches for their masks.

    weights: training set -> its weight; label_iou: of all training caches, or of each where they differ; missing: "training",
    "validation" -> video that its caches do not hold -> why.
    """

    train: list[VideoSample]
    valid: list[VideoSample]
    valid_tracks: TrackSource
    cards: dict[str, list[dict[str, Any]]]
    weights: dict[str, float]
    label_iou: float | list[float]
    missing: dict[str, dict[str, str]]
    channels: tuple[int, int]


def held_out(video_ids: Sequence[str], share: float) -> list[str]:
    """The videos to hold out: those whose hash, uniform in [0, 1), is below `share`; of two videos or more at least one.

    The choice is the same on every machine and for any order. A video and its mirror image count as one: both or neither.
    """
    seen = {v: v.removesuffix(SUFFIX) for v in video_ids}
    place = {v: int.from_bytes(hashlib.sha256(v.encode()).digest()[:8], "big") / 2**64 for v in seen.values()}
    lowest = min(place.values(), default=1.0) if share > 0 and len(place) > 1 else -1.0
    return [v for v in video_ids if place[seen[v]] < share or place[seen[v]] == lowest]


def read_sources(
    tracks: Sequence[Path],
    texts: Sequence[Path],
    valid_tracks: Sequence[Path],
    valid_texts: Sequence[Path],
    *,
    requires: Sequence[str],
    weights: Mapping[str, float],
    label_iou: float | None,
    hold_out: float,
) -> Sources:
    """Everything into memory. Raises InputError when caches do not fit or there is nothing to train or validate on."""
    source = TrackSource(tracks)
    words = TextSource(texts_of(tracks, texts))
    of_set = set_weights(source.cards, weights)
    if valid_tracks:
        other = TrackSource(valid_tracks)
        other_words = TextSource(texts_of(valid_tracks, valid_texts))
        for name, here, there in (("tokens", source, other), ("words", words, other_words)):
            if here.card.channels != there.card.channels:  # type: ignore[attr-defined]
                raise InputError(f"{name} differ in channels between training and validation caches; extract both alike")
        train_ids, valid_ids = list(source.video_ids()), list(other.video_ids())
    else:
        # Ground-truth tracks help to train; a validation that could choose them would flatter.
        found = [path for path, card in zip(tracks, source.cards) if not card.training_only]
        if not found:
            raise InputError(f"{tracks[0]}: only ground-truth tracks; add --valid-cache with tracks that a tracker finds")
        other, other_words = TrackSource(found), words
        valid_ids = held_out(other.video_ids(), hold_out)
        kept_away = {v.removesuffix(SUFFIX) for v in valid_ids}
        train_ids = [v for v in source.video_ids() if v.removesuffix(SUFFIX) not in kept_away]
    for cache in other.caches:
        if cache.card.training_only:
            raise InputError(f"{cache.path}: ground-truth tracks are for training; validate with tracks that were found")
    for read in (words, other_words):
        same_words(words.card, str(words.caches[0].path), read)
    missing = {"training": absent("training", source, warn=True)}
    missing["validation"] = absent("validation", other, warn=bool(valid_tracks))
    limits = label_limits(source, label_iou)
    samples = [load_video(source, words, v, limits=limits, requires=requires) for v in train_ids]
    other_limits = label_limits(other, label_iou)
    held = [load_video(other, other_words, v, limits=other_limits, requires=requires) for v in valid_ids]
    if not any(len(s.expressions) for s in samples):
        raise InputError(f"{tracks[0]}: no expression to train on; extract more videos")
    cards = {
        "tracks": [c.model_dump() for c in source.cards],
        "text": [c.card.model_dump() for c in words.caches],
        "valid_tracks": [c.model_dump() for c in other.cards],
        "valid_text": [c.card.model_dump() for c in other_words.caches],
    }
    each = [limits[cache.path] for cache in source.caches]
    made_at = each[0] if len(set(each)) == 1 else each
    return Sources(samples, held, other, cards, of_set, made_at, missing, (source.card.channels, words.card.channels))


def absent(what: str, source: TrackSource, warn: bool) -> dict[str, str]:
    """Video -> why it is left out: one of its caches lacks it, or it failed in extraction. warn: say each in one line."""
    failed: dict[str, str] = {}
    for cache in source.caches:
        for video_id, error in failed_videos(cache).items():
            if video_id not in source.holes:
                failed[video_id] = f"{cache.path}, video {video_id}: {error}"
    if source.holes and warn:
        warnings.warn(f"{what}: {source.skipped()}", stacklevel=3)
    if failed and warn:
        first, remedy = failed[min(failed)], "mend it and run the extraction again, or go on without them"
        warnings.warn(
            f"{what}: {len(failed)} videos failed in extraction and are left out; first {first}; {remedy}", stacklevel=3
        )
    return {**source.holes, **failed}
