"""The steps of stage one: tracks of a split, words of a split, and both of every split."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rvos_cache.datasets import DATASETS, Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction.bindings import bound_digest
from rvos_cache.extraction.budget import check_budget
from rvos_cache.extraction.engine import Engine
from rvos_cache.extraction.local_engine import LocalEngine
from rvos_cache.extraction.run import ExtractReport, run_videos
from rvos_cache.extraction.work import OneStep, TrackWork
from rvos_cache.plugins import resolve
from rvos_cache.settings import build
from rvos_cache.store import CacheWriter, Card, TextRecord, default_folder, provenance, text_path, tracks_path, write_text
from rvos_cache.text import encoder_class


def chosen_videos(dataset: Dataset, videos: Iterable[str], limit: int | None, shard: str) -> list[str]:
    """The videos of a run in file order. shard "i/n" takes every n-th from the i-th. Raises InputError."""
    known = list(dataset.video_ids())
    wanted = list(videos)
    missing = [v for v in wanted if v not in set(known)]
    if missing:
        raise InputError(f"{dataset.root}, split {dataset.split}: no video {missing[0]!r}; rvos-cache check lists them")
    chosen = [v for v in known if v in set(wanted)] if wanted else known
    chosen = chosen[:limit]
    try:
        index, count = (int(part) for part in shard.split("/"))
        if not 1 <= index <= count:
            raise ValueError
    except ValueError:
        raise InputError(f"--shard wants i/n with 1 <= i <= n, got {shard!r}") from None
    return chosen[index - 1 :: count]


def extract(
    dataset: str,
    root: Path,
    split: str,
    tracker: str,
    out: Path,
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
    """Write the tracks of a split to the cache `out`. Running it again does what is left; a failed video stops no other.

    corrupt: "name:severity" of what is done to frames before the tracker sees them (`corruptions`); it is part of the card.
    engine: who does it; `jobs` processes of this machine by default. budget: bytes that the videos of all shards may take,
    for a tracker that knows them.
    Raises InputError for settings or a dataset that cannot be used or a budget that is passed, before anything runs; OSError
    when the disk is full or read-only.
    """
    work = TrackWork(dataset, Path(root), split, tracker, overrides or {}, corrupt)
    chosen = chosen_videos(work.source, videos, limit, shard)
    if budget is not None:
        check_budget(work, [(work.source, v) for v in chosen_videos(work.source, videos, limit, "1/1")], budget)
    return _tracked(work, out, chosen, engine or LocalEngine(jobs))


def _tracked(work: TrackWork, out: Path, videos: Sequence[str], engine: Engine) -> ExtractReport:
    return run_videos(out, tracks_card(work, out), videos, work, f"{work.tracker} {work.split}", engine)


def extract_text(
    dataset: str,
    root: Path,
    split: str,
    encoder: str,
    out: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> ExtractReport:
    """Write the words of a split's expressions to the cache `out`. Raises like `extract`."""
    source = open_dataset(dataset, root, split)
    kind = encoder_class(encoder)
    settings = build(kind.Settings, overrides or {}, f"text encoder {encoder}")
    made = kind(settings)
    card = Card(
        kind="text",
        dataset=dataset,
        split=split,
        producer=encoder,
        settings=settings.model_dump(mode="json"),
        weights=made.weight_hashes(),
        expressions_digest=bound_digest(source, out),
        channels=made.channels,
        root=str(Path(root)),
        **provenance(),
    )

    def one(writer: CacheWriter, video_id: str) -> int:
        expressions = source.expressions(video_id)
        words = made.encode([e.text for e in expressions])
        write_text(writer, TextRecord(video_id, expressions, tuple(words)))
        return len(expressions)

    return run_videos(out, card, source.video_ids(), OneStep(one), f"{encoder} {split}", LocalEngine(), "expressions")


def extract_all(
    dataset: str,
    root: Path,
    *,
    splits: Sequence[str] = (),
    tracker: str = "flow",
    encoder: str = "hashed",
    out: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    text_overrides: Mapping[str, Any] | None = None,
    corrupt: str | None = None,
    jobs: int = 1,
    engine: Engine | None = None,
    budget: int | None = None,
) -> dict[str, ExtractReport]:
    """Tracks and words of every split found: `<out>/<split>/<tracker>.zarr` and `text-<encoder>.zarr`.

    `out` is out/cache/<dataset> by default; tracks of corrupted frames lie in `<tracker>-<name>-<severity>.zarr`. overrides,
    text_overrides: settings of the tracker and of the encoder; budget: of the tracks of all splits together. Where `splits`
    names none, a split that hides what the tracker prompts with gets its words alone, with a warning.
    Raises like `extract`, and InputError when no split is found.
    """
    found = list(splits) or resolve(DATASETS, dataset, "dataset").splits(Path(root))
    if not found:
        raise InputError(f"{root}: no split of {dataset} here; put the dataset there or give --root (make: ROOT=...)")
    base = out or default_folder(dataset)
    work = TrackWork(dataset, Path(root), found[0], tracker, overrides or {}, corrupt)
    if budget is not None:
        sources = [work.of_split(split).source for split in found]
        check_budget(work, [(source, v) for source in sources for v in source.video_ids()], budget)
    reports = {}
    for split in found:
        work = work.of_split(split)
        if splits or work.prompted:
            tracks = tracks_path(base, split, tracker, corrupt)
            reports[f"{split}/{tracks.stem}"] = _tracked(work, tracks, work.source.video_ids(), engine or LocalEngine(jobs))
        else:
            warnings.warn(f"split {split} hides the ground truth that {tracker} prompts with: its words alone", stacklevel=2)
        words = text_path(base, split, encoder)
        reports[f"{split}/text"] = extract_text(dataset, root, split, encoder, words, overrides=text_overrides)
    return reports


def tracks_card(work: TrackWork, out: Path) -> Card:
    """The card of the tracks cache `out`. Raises InputError, also where the split hides what the tracker prompts with."""
    work.check_prompted()
    tracker, source = work.model, work.source
    specs = [{"name": s.name, "dims": list(s.dims), "dtype": s.dtype, "by_frame": s.by_frame} for s in tracker.feature_specs]
    return Card(
        kind="tracks",
        dataset=work.dataset,
        split=source.split,
        producer=work.tracker,
        settings=work.settings.model_dump(mode="json"),
        weights=tracker.weight_hashes(),
        expressions_digest=bound_digest(source, out) if tracker.reads_expressions else None,
        channels=tracker.channels,
        label_iou=tracker.label_iou,
        training_only=tracker.wants_ground_truth,
        feature_specs=specs,
        extra={} if work.corrupt is None else {"corrupt": work.corrupt},
        root=str(source.root),
        **provenance(),
    )
