"""The steps of stage one: tracks of a split, words of a split, and both for every split."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rvos_cache.axes import axis_of
from rvos_cache.datasets import Dataset, dataset_class, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction.bindings import bound_digest, check_same_texts, check_unchanged
from rvos_cache.extraction.budget import check_budget
from rvos_cache.extraction.engine import Engine
from rvos_cache.extraction.local_engine import LocalEngine
from rvos_cache.extraction.run import ExtractReport, run_videos
from rvos_cache.extraction.work import OneStep, TrackWork
from rvos_cache.plugins import checked_weights, code_digest
from rvos_cache.settings import build
from rvos_cache.store import (
    CacheWriter,
    Card,
    TextRecord,
    default_folder,
    provenance,
    text_path,
    tracks_path,
    write_text,
)
from rvos_cache.text import TEXT_ENCODERS, TextEncoder, encoder_class, open_encoder
from rvos_cache.text.cut import cuts_counted
from rvos_cache.trackers import TRACKERS, Tracker

Check = Callable[[Sequence[Card], Card], None]
"""A look at the cards of the tracks caches and of the text cache that will be written; raises InputError to stop before."""


def select_videos(dataset: Dataset, videos: Iterable[str], limit: int | None, shard: str) -> list[str]:
    """The videos of a run in file order.

    videos: ids (none: all of the split); limit: only the first so many; shard: "i/n", every n-th of these from the i-th.
    Raises InputError for a video that the split does not have, or a malformed shard.
    """
    listed = list(dataset.video_ids())
    requested = list(videos)
    missing = [v for v in requested if v not in set(listed)]
    if missing:
        near = difflib.get_close_matches(missing[0], listed, 3) or listed[:3]
        named = ", ".join(near) + (" …" if len(listed) > len(near) else "")
        raise InputError(f"{dataset.root}, split {dataset.split}: no video {missing[0]!r}; its videos: {named}")
    selected = [v for v in listed if v in set(requested)] if requested else listed
    return shard_of(selected[:limit], shard)


def shard_of(video_ids: Sequence[str], shard: str) -> list[str]:
    """Every n-th video from the i-th of "i/n". Raises InputError for a malformed shard."""
    try:
        index, count = (int(part) for part in shard.split("/"))
        if not 1 <= index <= count:
            raise ValueError
    except ValueError:
        raise InputError(f"--shard wants i/n with 1 <= i <= n, got {shard!r}") from None
    return list(video_ids)[index - 1 :: count]


def extract(
    dataset: str,
    root: Path | str,
    split: str,
    tracker: str,
    out: Path | str,
    *,
    videos: Iterable[str] = (),
    limit: int | None = None,
    shard: str = "1/1",
    overrides: Mapping[str, Any] | None = None,
    corrupt: str | None = None,
    jobs: int = 1,
    engine: Engine | None = None,
    budget: int | None = None,
) -> ExtractReport:
    """Write the tracks of a split to the cache `out`. Running it again processes what is left; a failed video stops no other.

    dataset, tracker: a built-in name, or "my_module:MyClass"; root: folder of the dataset; out: a path ending in .zarr, or a
    URL; videos, limit, shard: as in `select_videos`; overrides: settings of the tracker; corrupt: "name:severity" of a
    corruption that is applied to the frames first (`rvos_cache.corruptions`), it is part of the card; engine: by default
    `jobs` processes on this machine; budget: bytes that the videos of all shards may take, for a tracker that knows them.
    Raises InputError, before anything runs, for settings, a plugin or a dataset that cannot be used, or a budget that is
    exceeded; OSError if the disk is full or read-only.
    """
    work = TrackWork(dataset, Path(root), split, tracker, overrides or {}, corrupt)
    selected = select_videos(work.source, videos, limit, shard)
    if budget is not None:
        check_budget(work, [(work.source, v) for v in select_videos(work.source, videos, limit, "1/1")], budget)
    return _extract_tracks(work, out, selected, engine or LocalEngine(jobs))


def _extract_tracks(work: TrackWork, out: Path | str, videos: Sequence[str], engine: Engine) -> ExtractReport:
    card = tracks_card(work, out)
    check_unchanged(out, card, work.source, videos)
    return run_videos(out, card, videos, work, f"{work.tracker} {work.split}", engine)


def extract_text(
    dataset: str,
    root: Path | str,
    split: str,
    encoder: str,
    out: Path | str,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> ExtractReport:
    """Write the words of a split's expressions to the cache `out`. overrides: settings of the encoder. Raises like `extract`."""
    settings = _encoder_settings(encoder, overrides)
    source = open_dataset(dataset, root, split)
    return _extract_words(source, dataset, encoder, open_encoder(encoder, settings), settings, out)


def _encoder_settings(encoder: str, overrides: Mapping[str, Any] | None) -> BaseModel:
    settings: BaseModel = build(encoder_class(encoder).Settings, overrides or {}, f"text encoder {encoder}")
    return settings


def _extract_words(
    source: Dataset, dataset: str, encoder: str, model: TextEncoder, settings: BaseModel, out: Path | str
) -> ExtractReport:
    card = text_card(encoder, model, settings).model_copy(
        update={
            "dataset": dataset,
            "split": source.split,
            "expressions_digest": bound_digest(source, out),
            "root": str(source.root.absolute()),
        }
    )

    def write_one(writer: CacheWriter, video_id: str) -> int:
        expressions = source.expressions(video_id)
        words = model.encode_checked([e.text for e in expressions])
        write_text(writer, TextRecord(video_id, expressions, tuple(words)))
        return len(expressions)

    check_same_texts(out, source)
    with cuts_counted():
        return run_videos(
            out, card, source.video_ids(), OneStep(write_one), f"{encoder} {source.split}", LocalEngine(), "expressions"
        )


def extract_all(
    dataset: str,
    root: Path | str,
    *,
    splits: Sequence[str] = (),
    tracker: str = "flow",
    encoder: str = "hashed",
    out: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    text_overrides: Mapping[str, Any] | None = None,
    also: Mapping[str, Mapping[str, Any]] | Sequence[str] = (),
    corrupt: str | None = None,
    jobs: int = 1,
    engine: Engine | None = None,
    budget: int | None = None,
    check: Check | None = None,
) -> dict[str, ExtractReport]:
    """Tracks and words of every split that is found: `<out>/<split>/<tracker>.zarr` and `text-<encoder>.zarr`.

    `out` is out/cache/<dataset> by default; tracks of corrupted frames are written to `<tracker>-<name>-<severity>.zarr`.
    overrides, text_overrides: settings of the tracker and of the encoder; also: other trackers, or tracker -> its settings, each of
    which writes a cache beside the first; budget: bytes of the tracks of all splits and trackers together; check: called before the
    first video with the cards that the tracks caches and the text cache of the first split will have; what it raises ends the run.
    If `splits` is empty, a split that hides the ground truth that a tracker prompts with gets no cache of it, with a warning.
    Raises like `extract`, and InputError if no split is found, or two trackers would write to the same path.
    """
    names = list(splits) or dataset_class(dataset).splits(Path(root))
    if not names:
        raise InputError(f"{root}: no split of {dataset} here; put the dataset there, give --root (make: ROOT=...) or --split")
    base = Path(out) if out else default_folder(dataset)
    others = also if isinstance(also, Mapping) else {name: {} for name in also}
    works = [TrackWork(dataset, Path(root), names[0], tracker, overrides or {}, corrupt)]
    works += [TrackWork(dataset, Path(root), names[0], name, values, corrupt) for name, values in others.items()]
    _check_works(works, base, names, budget)
    # Before hours of tracking: an encoder without weights fails here.
    try:
        text_settings = _encoder_settings(encoder, text_overrides)
        model = open_encoder(encoder, text_settings)
    except InputError as error:
        raise InputError(str(error).replace("--set ", "--text-set ")) from error
    if check is not None:
        known = {"dataset": dataset, "split": names[0]}
        tracks_cards = [tracker_card(work.tracker, work.model, work.settings, work.weights) for work in works]
        words_card = text_card(encoder, model, text_settings)
        check([card.model_copy(update=known) for card in tracks_cards], words_card.model_copy(update=known))
    reports = {}
    for split in names:
        source = open_dataset(dataset, root, split)
        works = [work.of_split(split, source) for work in works]
        for work in works:
            if splits or work.has_prompts:
                tracks = tracks_path(base, split, work.tracker, corrupt)
                report = _extract_tracks(work, tracks, source.video_ids(), engine or LocalEngine(jobs))
                reports[f"{split}/{tracks.stem}"] = report
            else:
                alone = "its words alone" if len(works) == 1 else f"it gets no cache of {work.tracker}"
                warnings.warn(f"split {split} hides the ground truth that {work.tracker} prompts with: {alone}", stacklevel=2)
        words = text_path(base, split, encoder)
        reports[f"{split}/text"] = _extract_words(source, dataset, encoder, model, text_settings, words)
    return reports


def _check_works(works: Sequence[TrackWork], base: Path, splits: Sequence[str], budget: int | None) -> None:
    """Open what would fail after hours of the first tracker. Raises InputError, also if the trackers need more than `budget`."""
    paths = [tracks_path(base, splits[0], work.tracker, work.corrupt) for work in works]
    for work, path in zip(works[1:], paths[1:]):
        if paths.count(path) > 1:
            raise InputError(f"--also {work.tracker}: another tracker of this run writes {path} too; give each tracker once")
        try:
            _ = work.model
        except InputError as error:
            raise InputError(str(error).replace("--set ", f"--also-set {work.tracker}.")) from error
    if budget is None:
        return
    sources = [works[0].of_split(split).source for split in splits]
    videos = [(source, video_id) for source in sources for video_id in source.video_ids()]
    used = 0
    for work in works:
        used += check_budget(work, videos, budget, used)


def reads_expressions(tracker: Tracker) -> bool:
    """Whether the result depends on the sentences: by the tracks, or by a feature with an axis of expressions."""
    return tracker.reads_expressions or any(axis_of(spec.dims, "E") is not None for spec in tracker.feature_specs)


def tracks_card(work: TrackWork, out: Path | str) -> Card:
    """The card of the tracks cache `out`. Raises InputError, also if the split hides the ground truth that the tracker needs."""
    work.check_prompts()
    source = work.source
    card = tracker_card(work.tracker, work.model, work.settings, work.weights)
    return card.model_copy(
        update={
            "dataset": work.dataset,
            "split": source.split,
            "expressions_digest": None if card.expressions_digest is None else bound_digest(source, out),
            "extra": {**({} if work.corrupt is None else {"corrupt": work.corrupt}), **card.extra},
            "root": str(source.root.absolute()),
        }
    )


def tracker_card(name: str, tracker: Tracker, settings: BaseModel, weights: Mapping[str, str] | None = None) -> Card:
    """The card of tracks by `tracker`, of no dataset: `expressions_digest` is "" where they depend on the sentences, else None.

    weights: the tracker's digests; None: they are computed.
    """
    is_custom = name not in TRACKERS
    return Card(
        kind="tracks",
        dataset="",
        split="",
        producer=name,
        settings=settings.model_dump(mode="json"),
        weights=dict(checked_weights(tracker, f"tracker {name}", is_custom) if weights is None else weights),
        expressions_digest="" if reads_expressions(tracker) else None,
        channels=tracker.channels,
        label_iou=tracker.label_iou,
        training_only=tracker.wants_ground_truth,
        feature_specs=[spec.to_json() for spec in tracker.feature_specs],
        measurement_specs=[spec.to_json() for spec in tracker.measurement_specs],
        extra=code_digest(type(tracker), is_custom=is_custom),
        **provenance(),
    )


def text_card(name: str, encoder: TextEncoder, settings: BaseModel) -> Card:
    """The card of words by `encoder`, of no dataset and no expressions."""
    is_custom = name not in TEXT_ENCODERS
    return Card(
        kind="text",
        dataset="",
        split="",
        producer=name,
        settings=settings.model_dump(mode="json"),
        weights=checked_weights(encoder, f"text encoder {name}", is_custom),
        expressions_digest="",
        channels=encoder.channels,
        extra=code_digest(type(encoder), is_custom=is_custom),
        **provenance(),
    )
