"""Score every candidate track of every expression; nothing is selected yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvos_cache.errors import InputError
from rvos_cache.extraction import ExtractReport, write_videos
from rvos_cache.masks import RleMasks
from rvos_cache.store import (
    CacheWriter,
    Card,
    SelectionCache,
    SelectionRecord,
    format_uri,
    open_backend,
    provenance,
    read_card,
    write_selections,
)
from rvos_cache.system.device import device
from rvos_cache.types import Selection
from rvos_select.data.bound import check_same_tracks
from rvos_select.data.caches import TrackSource
from rvos_select.data.left_out import unextracted_videos, warn_of_incomplete
from rvos_select.data.one_object import all_name_one_object
from rvos_select.data.samples import VideoSample, load_video
from rvos_select.data.texts import TextSource, texts_of
from rvos_select.inference.infer import infer_video, queries_to_draw
from rvos_select.inference.scorer import OpenScorer, scorer_of
from rvos_select.merging.hints import warn_if_empty
from rvos_select.merging.policy import DEFAULT_EMPTY, DRAW_THRESHOLD, EMPTY, THRESHOLD, TOP1, resolve_policy, selector_policy
from rvos_select.paths import PathLike, Paths, as_paths
from rvos_select.selectors import Selector


def predict(
    run: PathLike | None = None,
    tracks: Paths = (),
    texts: Paths = (),
    out: PathLike = "out/selections.zarr",
    *,
    selector: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Selections of all expressions of the caches. Running it again does what is left.

    run: folder of a training run, whose best module scores; or selector: the name of one that needs no training, with its settings
    `config`. tracks, texts: one cache or several, texts by default those next to the tracks; out: the selections cache to write. The
    caches may be of another dataset than the run's (zero-shot), by the same tracker and encoder.
    Returns `out`. Raises InputError for caches that do not fit, ground-truth tracks, or a damaged checkpoint, and at the end
    for videos that failed, which are recorded in `<out>/failures.jsonl` and stop no other. Warns where the default selection
    policy selects nothing for any expression.
    """
    selections = score_tracks(scorer_of(run, selector, config), tracks, texts, out)
    cache = SelectionCache(selections)
    warn_if_empty(cache, resolve_policy(cache))
    return selections


def score_tracks(open_scorer: OpenScorer, tracks: Paths, texts: Paths, out: PathLike) -> Path:
    """As `predict`, without a look at what is selected."""
    track_paths = as_paths(tracks)
    source, words = inference_sources(track_paths, texts_of(track_paths, as_paths(texts)))
    scorer = open_scorer(source, words)
    selector = scorer.selector
    card = selections_card(scorer.name, scorer.settings, selector.threshold, source, words, scorer.weights)
    extra = {**card.extra, **_policy_entries(selector, source)}
    card = card.model_copy(update={"extra": extra, "run": scorer.run})
    where = device()
    selector.to(where)

    def write_one(writer: CacheWriter, video_id: str) -> int:
        sample = load_video(source, words, video_id, requires=tuple(selector.requires))
        return _write(writer, source, words, video_id, select(selector, sample, where))

    _check_published(out, card, source, words)
    with torch.inference_mode():
        written = _checked(out, write_videos(Path(out), card, _videos(source), write_one, f"predict {card.split}"))
    unextracted_videos("selections", [source], warn=True)
    return written


def select(selector: Selector, sample: VideoSample, device: torch.device) -> tuple[Selection, ...]:
    """The selection of each expression of a video, in the order of the sample. Raises ValueError like `infer_video`, and when a
    selector gives parts of some expressions alone."""
    selections: dict[int, Selection] = {}
    for part in infer_video(selector, sample, device):
        queries = queries_to_draw(part.scores, selector.draw_threshold) if selector.draws else None
        masks = None if queries is None else _masks_of_rows(part.masks(queries), queries)
        for i, row in enumerate(part.rows):
            expression_id = sample.expressions[row].expression_id
            allowed = part.candidates[i] if queries is None else queries[i]
            own_masks, parts = None if masks is None else masks[i], None if part.parts is None else part.parts[i]
            selections[row] = Selection(expression_id, part.scores[i], allowed, own_masks, parts)
    return _padded([selections[row] for row in range(len(sample.expressions))])


def _padded(selections: Sequence[Selection]) -> tuple[Selection, ...]:
    """Selections with parts, padded to the largest number of queries; those that a selector gives in pieces may have fewer.

    Raises ValueError when only some have parts.
    """
    if all(s.parts is None for s in selections):
        return tuple(selections)
    width, padded = max(len(s.scores) for s in selections), []
    for s in selections:
        if s.parts is None:
            raise ValueError(f"infer gives parts of some expressions, but not of {s.expression_id}; give them for all of a video")
        more = (0, width - len(s.scores))
        parts = np.pad(s.parts, (more, (0, 0)), constant_values=-1)
        padded.append(replace(s, scores=np.pad(s.scores, more), candidates=np.pad(s.candidates, more), parts=parts))
    return tuple(padded)


def _masks_of_rows(masks: RleMasks, queries: np.ndarray) -> list[RleMasks]:
    """masks: (K, T) of the queries marked in bool (R, Q). Returns for each row (Q, T), empty where a query is not marked."""
    empty = RleMasks.empty(1, masks.shape[1], masks.size)
    numbers = iter(range(masks.shape[0]))
    return [RleMasks.concatenate([masks.select([next(numbers)]) if marked else empty for marked in row]) for row in queries]


def _policy_entries(selector: Selector, source: TrackSource) -> dict[str, Any]:
    """Entries of the card: how tracks are selected by default, next to the threshold. Raises InputError for an unknown `empty`."""
    policy = selector_policy(selector, all_name_one_object({card.dataset for card in source.cards}))
    entries: dict[str, Any] = {TOP1: policy.top1}
    if selector.draws:
        entries[DRAW_THRESHOLD] = selector.draw_threshold
    return entries if policy.empty == DEFAULT_EMPTY else {**entries, EMPTY: policy.empty}


def _check_published(out: PathLike, card: Card, source: TrackSource, words: TextSource) -> None:
    """Raises InputError for a video that `out` holds already, if it was made of other tracks or words than the caches hold now."""
    if not open_backend(Path(out)).has_card() or read_card(Path(out)).differences(card):
        # Another card is an error of its own when `out` is opened for writing.
        return
    selections = SelectionCache(Path(out))
    for video_id in sorted(set(selections.video_ids()).intersection(source.video_ids())):
        check_same_tracks(selections, source, video_id)
        if selections.info(video_id).words != words.content(video_id):
            raise InputError(
                f"{selections.path}, video {video_id}: made of other words than {words.cache_of[video_id].path} holds now; predict "
                "into another --out"
            )


def _write(writer: CacheWriter, source: TrackSource, words: TextSource, video_id: str, selections: tuple[Selection, ...]) -> int:
    info = source.info(video_id)
    record = SelectionRecord(
        video_id,
        info.frame_names,
        info.size,
        selections,
        words.expressions(video_id),
        source.contents(video_id),
        words.content(video_id),
    )
    write_selections(writer, record)
    return info.frames


def _videos(source: TrackSource) -> tuple[str, ...]:
    """The videos to predict. Raises InputError for a cache without any."""
    for cache in source.caches:
        cache.require_videos()
    return source.video_ids()


def _checked(out: PathLike, report: ExtractReport) -> Path:
    """`out` when no video failed. Raises InputError that names the first that did."""
    if report.failed:
        video_id, error = next(iter(report.failed.items()))
        raise InputError(
            f"{format_uri(Path(out))}: {len(report.failed)} of its videos failed (listed in failures.jsonl), first {video_id}: "
            f"{error}; then run the same command again, it does what is left"
        )
    return Path(out)


def select_all(tracks: Paths, texts: Paths = (), out: PathLike = "out/all-tracks.zarr") -> Path:
    """The baseline that selects every candidate of every expression: `predict` with the selector all-tracks."""
    return predict(None, tracks, texts, out, selector="all-tracks")


def inference_sources(tracks: Sequence[Path], texts: Sequence[Path]) -> tuple[TrackSource, TextSource]:
    """Caches to predict from. Raises InputError for ground-truth tracks, which exist for training only, and foreign words."""
    source, words = TrackSource(tracks), TextSource(texts)
    for cache in source.caches:
        if cache.card.training_only:
            raise InputError(f"{cache.path}: tracks prompted with ground truth are for training; give tracks that were found")
        if cache.video_ids() and words.videos.isdisjoint(cache.video_ids()):
            raise InputError(f"{cache.path}: none of its videos has words in {words.caches[0].path}; give --text of its split")
    warn_of_incomplete("selections", [source])
    return source, words


def selections_card(
    producer: str,
    settings: dict[str, Any],
    threshold: float,
    source: TrackSource,
    words: TextSource,
    weights: dict[str, str],
) -> Card:
    """The card of a selections cache: bound to the run's weights and settings, and to the caches' own cards."""
    fields = {"settings", "producer", "weights", "dataset", "split"}
    return Card(
        kind="selections",
        dataset=source.card.dataset,
        split=source.card.split,
        producer=producer,
        settings=settings,
        weights=weights,
        extra={
            THRESHOLD: threshold,
            "tracks": [card.model_dump(include=fields) for card in source.cards],
            "text": [card.model_dump(include=fields) for card in words.cards],
        },
        root=source.card.root,
        **provenance(),
    )
