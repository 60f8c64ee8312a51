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
from rvos_cache.extraction import failed_videos
from rvos_cache.store import format_uri, read_card
from rvos_select.data.caches import TextSource, TrackSource, same_words, texts_of
from rvos_select.data.samples import VideoSample, label_limits, load_video, set_name, set_weights


@dataclass(frozen=True)
class CachedSet:
    """One set, "dataset/split", of a run: the tracks and the words of its videos."""

    tracks: TrackSource
    words: TextSource

    def load(self, video_ids: Sequence[str], label_iou: float | None, requires: Sequence[str]) -> list[VideoSample]:
        """The videos with their labels. Raises InputError as `load_video` does."""
        limits = label_limits(self.tracks, label_iou)
        return [load_video(self.tracks, self.words, v, limits=limits, requires=requires) for v in video_ids]


CachedSets = dict[str, CachedSet]
"""Set -> its caches. Two sets may name videos alike, as RefCOCO, RefCOCO+ and RefCOCOg do."""


@dataclass
class Sources:
    """What a run reads: samples to train on and to validate with, and the sets of the latter for their masks.

    weights: training set -> its weight; label_iou: of all training caches, or of each where they differ; missing: "training",
    "validation" -> video that its caches do not hold -> why.
    """

    train: list[VideoSample]
    valid: list[VideoSample]
    valid_sets: CachedSets
    cards: dict[str, list[dict[str, Any]]]
    weights: dict[str, float]
    label_iou: float | list[float]
    missing: dict[str, dict[str, str]]
    channels: tuple[int, int]


def cached_sets(tracks: Sequence[Path], texts: Sequence[Path]) -> CachedSets:
    """The sets of tracks caches, in the order given, each with the text caches of its split, else of its dataset.

    Raises InputError when caches do not fit together or a set has no words.
    """
    if not tracks:
        raise InputError("no tracks cache given; add --cache C.zarr")
    paths, first = dict[str, list[Path]](), read_card(tracks[0])
    of_set, of_dataset = dict[str, list[Path]](), dict[str, list[Path]]()
    for path in tracks:
        card = read_card(path)
        paths.setdefault(set_name(card), []).append(path)
        if card.channels != first.channels:
            has = f"tokens of {card.channels} channels, {format_uri(tracks[0])} has {first.channels}"
            raise InputError(f"{format_uri(path)}: {has}; caches that are read together need the same")
    for path in texts:
        card = read_card(path)
        if card.channels != read_card(texts[0]).channels:
            has = f"words of {card.channels} channels, {format_uri(texts[0])} has {read_card(texts[0]).channels}"
            raise InputError(f"{format_uri(path)}: {has}; text caches need the same width")
        of_set.setdefault(set_name(card), []).append(path)
        of_dataset.setdefault(card.dataset, []).append(path)
    found = {}
    for name, held in paths.items():
        said = of_set.get(name) or of_dataset.get(read_card(held[0]).dataset)
        if not said:
            raise InputError(f"{held[0]}: no text cache of {name} was given; add --text with the words of this split")
        found[name] = CachedSet(TrackSource(held), TextSource(said))
    return found


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
    """Everything into memory. Raises InputError when caches do not fit, or the given ones hold nothing to train or validate on.

    Warns where videos to validate with are trained on too.
    """
    texts = texts_of(tracks, texts)
    sets = cached_sets(tracks, texts)
    of_set = set_weights([card for held in sets.values() for card in held.tracks.cards], weights)
    train_ids = {name: held.tracks.video_ids() for name, held in sets.items()}
    if valid_tracks:
        others = cached_sets(valid_tracks, texts_of(valid_tracks, valid_texts))
        valid_ids = {name: held.tracks.video_ids() for name, held in others.items()}
        _same_channels(sets, others)
    else:
        # Ground-truth tracks help to train; a validation that could choose them would flatter.
        found = [path for path in tracks if not read_card(path).training_only]
        if not found:
            raise InputError(f"{tracks[0]}: only ground-truth tracks; add --valid-cache with tracks that a tracker finds")
        others = cached_sets(found, texts)
        kept_away = set(held_out(sorted({v for held in others.values() for v in held.tracks.video_ids()}), hold_out))
        valid_ids = {name: tuple(v for v in held.tracks.video_ids() if v in kept_away) for name, held in others.items()}
        own = {v.removesuffix(SUFFIX) for v in kept_away}
        train_ids = {name: tuple(v for v in ids if v.removesuffix(SUFFIX) not in own) for name, ids in train_ids.items()}
    _check_alike(sets, others)
    if valid_tracks:
        _warn_of_seen(train_ids, valid_ids)
    missing = {"training": absent("training", sets, warn=True)}
    missing["validation"] = absent("validation", others, warn=bool(valid_tracks))
    samples = [sample for name, held in sets.items() for sample in held.load(train_ids[name], label_iou, requires)]
    held_back = [sample for name, held in others.items() for sample in held.load(valid_ids[name], label_iou, requires)]
    if not any(len(s.expressions) for s in samples):
        raise InputError(f"{tracks[0]}: no expression to train on; extract more videos")
    if valid_tracks and not any(len(s.expressions) for s in held_back):
        raise InputError(f"{valid_tracks[0]}: no expression to validate with; extract its videos, or leave --valid-cache out")
    cards = {**_cards(sets), **{f"valid_{kind}": found for kind, found in _cards(others).items()}}
    each = [limit for held in sets.values() for limit in label_limits(held.tracks, label_iou).values()]
    made_at = each[0] if len(set(each)) == 1 else each
    first = next(iter(sets.values()))
    channels = (first.tracks.card.channels, first.words.card.channels)
    return Sources(samples, held_back, others, cards, of_set, made_at, missing, channels)


def _same_channels(sets: CachedSets, others: CachedSets) -> None:
    """Raises InputError when tokens or words of the sets to validate with are of another width."""
    here, there = (next(iter(found.values())) for found in (sets, others))
    for name, ours, theirs in (("tokens", here.tracks, there.tracks), ("words", here.words, there.words)):
        if ours.card.channels != theirs.card.channels:  # type: ignore[attr-defined]
            raise InputError(f"{name} differ in channels between training and validation caches; extract both alike")


def _check_alike(sets: CachedSets, others: CachedSets) -> None:
    """Raises InputError for ground-truth tracks to validate with, and for words of two encoders."""
    for held in others.values():
        for cache in held.tracks.caches:
            if cache.card.training_only:
                raise InputError(f"{cache.path}: ground-truth tracks are for training; validate with tracks that were found")
    first = next(iter(sets.values())).words
    for held in (*sets.values(), *others.values()):
        same_words(first.card, str(first.caches[0].path), held.words)


def _warn_of_seen(train_ids: Mapping[str, Sequence[str]], valid_ids: Mapping[str, Sequence[str]]) -> None:
    """Say in one line that videos to validate with, or their mirror images, are trained on too. Ids alone are compared."""
    trained = {v.removesuffix(SUFFIX): name for name, ids in train_ids.items() for v in ids}
    seen = [(v, name) for name, ids in valid_ids.items() for v in ids if v.removesuffix(SUFFIX) in trained]
    if seen:
        video_id, name = seen[0]
        also = f"{len(seen)} videos to validate with are trained on too; first {video_id} of {name}"
        source = trained[video_id.removesuffix(SUFFIX)]
        warnings.warn(f"{also}, in {source}: the scores will flatter; keep each video in one of them", stacklevel=3)


def _cards(sets: CachedSets) -> dict[str, list[dict[str, Any]]]:
    return {
        "tracks": [card.model_dump() for held in sets.values() for card in held.tracks.cards],
        "text": [cache.card.model_dump() for held in sets.values() for cache in held.words.caches],
    }


def absent(what: str, sets: CachedSets, warn: bool) -> dict[str, str]:
    """Video -> why it is left out: one of its caches lacks it, or it failed in extraction. warn: say each in one line."""
    holes, failed = dict[str, str](), dict[str, str]()
    for source in (held.tracks for held in sets.values()):
        holes |= source.holes
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
    return {**holes, **failed}
