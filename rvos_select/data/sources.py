"""What a training run reads: its caches as samples in memory, the held-out videos, and the missing ones."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvos_cache.datasets.mirrored import SUFFIX
from rvos_cache.errors import InputError
from rvos_cache.store import format_uri, read_card
from rvos_cache.system.progress import tracked
from rvos_select.data.caches import TrackSource
from rvos_select.data.cards import check_same_channels
from rvos_select.data.epochs import set_weights
from rvos_select.data.labels import label_rule
from rvos_select.data.left_out import missing_videos
from rvos_select.data.samples import VideoSample, label_thresholds, load_video, set_name
from rvos_select.data.texts import TextSource, check_same_encoder, texts_of


@dataclass(frozen=True)
class LabelSettings:
    """How targets are made. iou: mean IoU above which a track is a positive, None: of each card; rule: name of the label rule."""

    iou: float | None = None
    rule: str = "max_iou"


@dataclass(frozen=True)
class CachedSet:
    """One set, "dataset/split", of a run: the tracks and the words of its videos."""

    tracks: TrackSource
    words: TextSource

    def load(self, video_ids: Sequence[str], labels: LabelSettings, requires: Sequence[str]) -> list[VideoSample]:
        """The videos with their labels. Raises InputError as `load_video` does."""
        thresholds, rule = label_thresholds(self.tracks, labels.iou), label_rule(labels.rule)
        return [
            load_video(self.tracks, self.words, video_id, thresholds=thresholds, requires=requires, rule=rule)
            for video_id in tracked(video_ids, f"read {set_name(self.tracks.card)}")
        ]


CachedSets = dict[str, CachedSet]
"""Set -> its caches. Two sets may name videos alike, as RefCOCO, RefCOCO+ and RefCOCOg do."""


@dataclass
class Sources:
    """What a run reads: samples to train on and to validate with, and the sets of both for their masks.

    held_out: videos held out of the training caches, None where validation caches were given; weights: training set -> its
    weight; label_iou: of all training caches, or of each where they differ; missing: "training", "validation" -> video that its
    caches do not hold -> why; contents: the content of each video of each cache, in the order of cards.
    """

    train: list[VideoSample]
    valid: list[VideoSample]
    train_sets: CachedSets
    valid_sets: CachedSets
    held_out: list[str] | None
    cards: dict[str, list[dict[str, Any]]]
    weights: dict[str, float]
    label_iou: float | list[float]
    missing: dict[str, dict[str, str]]
    channels: tuple[int, int]
    contents: dict[str, list[dict[str, str]]]


def cached_sets(tracks: Sequence[Path], texts: Sequence[Path]) -> CachedSets:
    """The sets of tracks caches, in the order given, each with the text caches of its split, else of its dataset.

    Raises InputError when caches do not fit together or a set has no words.
    """
    if not tracks:
        raise InputError("no tracks cache given; add --cache C.zarr")
    tracks_of, texts_of_set, texts_of_dataset = (dict[str, list[Path]]() for _ in range(3))
    cards = [(path, read_card(path)) for path in tracks]
    check_same_channels([(format_uri(path), card) for path, card in cards])
    for path, card in cards:
        tracks_of.setdefault(set_name(card), []).append(path)
    for path in texts:
        card, first = read_card(path), read_card(texts[0])
        if card.channels != first.channels:
            difference = f"words of {card.channels} channels, {format_uri(texts[0])} has {first.channels}"
            raise InputError(f"{format_uri(path)}: {difference}; text caches need the same width")
        texts_of_set.setdefault(set_name(card), []).append(path)
        texts_of_dataset.setdefault(card.dataset, []).append(path)
    sets = {}
    for name, paths in tracks_of.items():
        text_paths = texts_of_set.get(name) or texts_of_dataset.get(read_card(paths[0]).dataset)
        if not text_paths:
            raise InputError(f"{paths[0]}: no text cache of {name} was given; add --text with the words of this split")
        sets[name] = CachedSet(TrackSource(paths), TextSource(text_paths))
    return sets


def held_out(video_ids: Sequence[str], share: float) -> list[str]:
    """The videos to hold out: those whose hash, uniform in [0, 1), is below `share`; of two videos or more at least one and not all.

    The selection is the same on every machine and for any order. A video and its mirror image count as one: both or neither.
    """
    originals = {v: v.removesuffix(SUFFIX) for v in video_ids}
    hashes = {v: int.from_bytes(hashlib.sha256(v.encode()).digest()[:8], "big") / 2**64 for v in originals.values()}
    if share == 0 or len(hashes) < 2:
        return []
    smallest, largest = min(hashes.values()), max(hashes.values())
    return [v for v in video_ids if hashes[originals[v]] == smallest or hashes[originals[v]] < min(share, largest)]


def read_sources(
    tracks: Sequence[Path],
    texts: Sequence[Path],
    valid_tracks: Sequence[Path],
    valid_texts: Sequence[Path],
    *,
    requires: Sequence[str],
    weights: Mapping[str, float],
    labels: LabelSettings,
    hold_out: float,
) -> Sources:
    """Everything into memory. Raises InputError when caches do not fit together, or hold nothing to train or validate on.

    Warns where videos to validate with are trained on too.
    """
    texts = texts_of(tracks, texts)
    sets = cached_sets(tracks, texts)
    weight_of_set = set_weights([card for each in sets.values() for card in each.tracks.cards], weights)
    train_ids = {name: each.tracks.video_ids() for name, each in sets.items()}
    if valid_tracks:
        valid_sets = cached_sets(valid_tracks, texts_of(valid_tracks, valid_texts))
        valid_ids = {name: each.tracks.video_ids() for name, each in valid_sets.items()}
        held_out_ids = None
        _check_channels(sets, valid_sets)
    else:
        # Ground-truth tracks help to train; a validation that may select them would flatter.
        paths = [path for path in tracks if not read_card(path).training_only]
        if not paths:
            raise InputError(f"{tracks[0]}: only ground-truth tracks; add --valid-cache with tracks that a tracker finds")
        valid_sets = cached_sets(paths, texts)
        all_ids = sorted({v for each in valid_sets.values() for v in each.tracks.video_ids()})
        held_out_ids = held_out(all_ids, hold_out)
        valid_ids = {name: tuple(v for v in each.tracks.video_ids() if v in held_out_ids) for name, each in valid_sets.items()}
        originals = {v.removesuffix(SUFFIX) for v in held_out_ids}
        train_ids = {name: tuple(v for v in ids if v.removesuffix(SUFFIX) not in originals) for name, ids in train_ids.items()}
    _check_validation(sets, valid_sets)
    if valid_tracks:
        _warn_of_shared_videos(train_ids, valid_ids)
    missing = {"training": missing_videos("training", [each.tracks for each in sets.values()], warn=True)}
    valid_sources = [each.tracks for each in valid_sets.values()]
    missing["validation"] = missing_videos("validation", valid_sources, warn=bool(valid_tracks))
    train = [sample for name, each in sets.items() for sample in each.load(train_ids[name], labels, requires)]
    valid = [sample for name, each in valid_sets.items() for sample in each.load(valid_ids[name], labels, requires)]
    if not any(len(s.expressions) for s in train):
        others = f", without the held-out {', '.join(held_out_ids[:3])}" if held_out_ids else ""
        raise InputError(f"{tracks[0]}: no expression to train on{others}; extract more videos, or give a --valid-cache")
    if valid_tracks and not any(len(s.expressions) for s in valid):
        raise InputError(f"{valid_tracks[0]}: no expression to validate with; extract its videos, or leave --valid-cache out")
    cards = {**_cards(sets), **{f"valid_{kind}": cards for kind, cards in _cards(valid_sets).items()}}
    contents = _contents(sets, train_ids) | {f"valid_{kind}": v for kind, v in _contents(valid_sets, valid_ids).items()}
    thresholds = [value for each in sets.values() for value in label_thresholds(each.tracks, labels.iou).values()]
    label_iou = thresholds[0] if len(set(thresholds)) == 1 else thresholds
    first = next(iter(sets.values()))
    channels = (first.tracks.channels, first.words.card.channels)
    return Sources(train, valid, sets, valid_sets, held_out_ids, cards, weight_of_set, label_iou, missing, channels, contents)


def _check_channels(sets: CachedSets, valid_sets: CachedSets) -> None:
    """Raises InputError when tokens or words of the sets to validate with have another width."""
    train, valid = (next(iter(each.values())) for each in (sets, valid_sets))
    for name, ours, theirs in (
        ("tokens", train.tracks.channels, valid.tracks.channels),
        ("words", train.words.card.channels, valid.words.card.channels),
    ):
        if ours != theirs:
            raise InputError(f"{name} differ in channels between training and validation caches; extract both alike")


def _check_validation(sets: CachedSets, valid_sets: CachedSets) -> None:
    """Raises InputError for ground-truth tracks to validate with, and for words of two encoders."""
    for each in valid_sets.values():
        for cache in each.tracks.caches:
            if cache.card.training_only:
                raise InputError(f"{cache.path}: ground-truth tracks are for training; validate with tracks that were found")
    first = next(iter(sets.values())).words
    for each in (*sets.values(), *valid_sets.values()):
        check_same_encoder(first.card, str(first.caches[0].path), each.words)


def _warn_of_shared_videos(train_ids: Mapping[str, Sequence[str]], valid_ids: Mapping[str, Sequence[str]]) -> None:
    """Warn in one line where videos to validate with, or their mirror images, are trained on too. Only ids are compared."""
    set_of = {v.removesuffix(SUFFIX): name for name, ids in train_ids.items() for v in ids}
    shared = [(v, name) for name, ids in valid_ids.items() for v in ids if v.removesuffix(SUFFIX) in set_of]
    if shared:
        video_id, name = shared[0]
        count = f"{len(shared)} videos to validate with are trained on too; first {video_id} of {name}"
        train_set = set_of[video_id.removesuffix(SUFFIX)]
        warnings.warn(f"{count}, in {train_set}: the scores will flatter; keep each video in one of them", stacklevel=3)


def _cards(sets: CachedSets) -> dict[str, list[dict[str, Any]]]:
    return {
        "tracks": [card.model_dump() for each in sets.values() for card in each.tracks.cards],
        "text": [card.model_dump() for each in sets.values() for card in each.words.cards],
    }


def _contents(sets: CachedSets, video_ids: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, str]]]:
    """The content of the videos `video_ids`, set -> videos, of each cache; in the order of `_cards`."""
    out: dict[str, list[dict[str, str]]] = {"tracks": [], "text": []}
    for name, each in sets.items():
        for kind, caches in (("tracks", each.tracks.caches), ("text", each.words.caches)):
            for cache in caches:
                present = set(cache.video_ids())
                out[kind].append({v: cache.content(v) for v in video_ids[name] if v in present})
    return out
