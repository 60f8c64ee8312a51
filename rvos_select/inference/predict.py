"""Score every candidate track of every expression; no decision yet."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvos_cache.errors import InputError
from rvos_cache.extraction import ExtractReport, write_videos
from rvos_cache.masks import RleMasks
from rvos_cache.store import CacheWriter, Card, SelectionRecord, format_uri, provenance, write_selections
from rvos_cache.types import Selection
from rvos_select.data.caches import TextSource, TrackSource, candidates, same_words
from rvos_select.data.one_object import all_name_one_object
from rvos_select.data.samples import VideoSample, load_video, video_batch
from rvos_select.inference.drawing import draw_masks, queries_to_draw
from rvos_select.merging.policy import DEFAULT_EMPTY, DRAW_THRESHOLD, EMPTY, THRESHOLD, TOP1, selector_policy
from rvos_select.runs.checkpoint import load_selector, run_cards, run_settings


def predict(run: Path, tracks: Sequence[Path], texts: Sequence[Path], out: Path) -> Path:
    """Selections of all expressions of the caches, by the best module of `run`. Running it again does what is left.

    The caches may be of another dataset than the run's (zero-shot), by the same tracker and encoder. Raises InputError for caches
    that do not fit the run, ground-truth tracks, or a damaged checkpoint, and in the end for videos that failed, which are
    recorded in `<out>/failures.jsonl` and stop no other.
    """
    source, words = inference_sources(tracks, texts)
    model = load_selector(Path(run))
    for what, have, want in (
        ("tokens", source.card.channels, model.config.token_channels),
        ("words", words.card.channels, model.config.word_channels),
    ):
        if have != want:
            path = (source if what == "tokens" else words).caches[0].path
            raise InputError(f"{path}: {what} of {have} channels, {run} was trained with {want}; extract them alike")
    same_tokens(Path(run), source)
    same_words(run_cards(Path(run))["text"], f"the run {run}", words)
    model.bind(source.cards)
    weights = {"best": _weights_digest(Path(run) / "best/model.safetensors")}
    card = selections_card(str(run), run_settings(Path(run))["settings"], model.threshold, source, words, weights)
    card = card.model_copy(update={"extra": {**card.extra, **_entries(model, source)}})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    requires = tuple(model.requires)

    def one(writer: CacheWriter, video_id: str) -> int:
        sample = load_video(source, words, video_id, requires=requires)
        select = _drawn if model.draws else _chosen
        return _write(writer, source, video_id, select(model, sample, requires, device))

    with torch.inference_mode():
        return _all(out, write_videos(out, card, source.video_ids(), one, f"predict {card.split}"))


def _entries(model: Any, source: TrackSource) -> dict[str, Any]:
    """What the selector says, beside its threshold, of how tracks are chosen. Raises InputError for an unknown `empty`."""
    rule = selector_policy(model, all_name_one_object({card.dataset for card in source.cards}))
    found: dict[str, Any] = {TOP1: rule.top1}
    if model.draws:
        found[DRAW_THRESHOLD] = model.draw_threshold
    # The default is left out, so that predict goes on with the selections of code that knew no other.
    return found if rule.empty == DEFAULT_EMPTY else {**found, EMPTY: rule.empty}


def _chosen(model: Any, sample: VideoSample, requires: Sequence[str], device: torch.device) -> tuple[Selection, ...]:
    """What a selector says of the tracks."""
    scores = np.zeros(sample.candidates.shape, np.float32)
    if sample.expressions and sample.tokens.shape[0]:
        logits = model(video_batch(sample, None, requires).to(device)).float()
        scores = torch.sigmoid(logits).cpu().numpy().astype(np.float32)
    allowed = sample.candidates.numpy()
    return tuple(
        Selection(e.expression_id, np.where(allowed[i], scores[i], 0).astype(np.float32), allowed[i])
        for i, e in enumerate(sample.expressions)
    )


def _drawn(model: Any, sample: VideoSample, requires: Sequence[str], device: torch.device) -> tuple[Selection, ...]:
    """What a selector says of its own queries, with their masks; a query that is not drawn is no candidate."""
    if not sample.expressions:
        return ()
    batch = video_batch(sample, None, requires).to(device)
    scores = torch.sigmoid(model(batch).float())
    wanted = queries_to_draw(scores, model.draw_threshold)
    masks = draw_masks(model, batch, wanted)
    empty = RleMasks.empty(1, masks.shape[1], masks.size)
    found, said = iter(range(masks.shape[0])), []
    for expression, row, drawn in zip(sample.expressions, scores.cpu().numpy(), wanted.cpu().numpy()):
        own = [masks.select([next(found)]) if there else empty for there in drawn]
        said.append(Selection(expression.expression_id, row.astype(np.float32), drawn, RleMasks.concatenate(own)))
    return tuple(said)


def _write(writer: CacheWriter, source: TrackSource, video_id: str, said: tuple[Selection, ...]) -> int:
    info = source.info(video_id)
    write_selections(writer, SelectionRecord(video_id, info.frame_names, info.size, said))
    return info.frames


def _all(out: Path, report: ExtractReport) -> Path:
    """`out` when no video failed. Raises InputError that names the first that did."""
    if report.failed:
        video_id, error = next(iter(report.failed.items()))
        raise InputError(
            f"{format_uri(out)}: {len(report.failed)} of its videos failed (listed in failures.jsonl), first {video_id}: "
            f"{error}; then run the same command again, it does what is left"
        )
    return Path(out)


def same_tokens(run: Path, tracks: TrackSource) -> None:
    """Raises InputError when tokens come from a tracker whose tokens the run has not seen; warns where its settings differ.

    A run may see tracks prompted in another way than those to predict (SOLA trains on ground-truth and grid tracks, and selects
    among grid and box tracks), but of the same frozen model: the same tracker, or the same checkpoint.
    """
    cards = run_settings(run)["cards"]
    seen = [Card.model_validate(card) for card in (*cards["tracks"], *cards.get("valid_tracks", ()))]
    weights: dict[str, set[str]] = {}
    for card in seen:
        for name, held in card.weights.items():
            weights.setdefault(name, set()).add(held)
    for cache in tracks.caches:
        card, remedy = cache.card, "extract them alike"
        shared = sorted(card.weights.keys() & weights.keys())
        for name in shared:
            if card.weights[name] not in weights[name]:
                trained = " or ".join(sorted(weights[name]))
                came = f"tokens by {name} of digest {card.weights[name]}"
                raise InputError(f"{cache.path}: {came}, {run} was trained with {trained}; {remedy}")
        known = [other for other in seen if other.producer == card.producer]
        if not known and not shared:
            trained = ", ".join(sorted({other.producer for other in seen}))
            raise InputError(f"{cache.path}: tokens of tracker {card.producer}, {run} was trained with {trained}; {remedy}")
        differing = [[n for n in card.differences(other) if n.startswith("settings.")] for other in known]
        if all(differing) and known:
            name = differing[0][0]
            have, want = card.value(name), known[0].value(name)
            warnings.warn(f"{cache.path}: tracks with {name} = {have!r}, {run} was trained with {want!r}", stacklevel=3)


def select_all(tracks: Sequence[Path], texts: Sequence[Path], out: Path) -> Path:
    """The baseline that selects every candidate of every expression."""
    source, words = inference_sources(tracks, texts)
    card = selections_card("all-tracks", {}, 0.5, source, words, {})

    def one(writer: CacheWriter, video_id: str) -> int:
        allowed = [(e, candidates(source.info(video_id), e.expression_id)) for e in words.expressions(video_id)]
        said = tuple(Selection(e.expression_id, a.astype(np.float32), a) for e, a in allowed)
        return _write(writer, source, video_id, said)

    return _all(out, write_videos(out, card, source.video_ids(), one, "all tracks"))


def inference_sources(tracks: Sequence[Path], texts: Sequence[Path]) -> tuple[TrackSource, TextSource]:
    """Caches to predict from. Raises InputError for ground-truth tracks, which exist for training only, and foreign words."""
    source, words = TrackSource(tracks), TextSource(texts)
    for cache in source.caches:
        if cache.card.training_only:
            raise InputError(f"{cache.path}: tracks prompted with ground truth are for training; give tracks that were found")
        if cache.video_ids() and words.videos.isdisjoint(cache.video_ids()):
            raise InputError(f"{cache.path}: none of its videos has words in {words.caches[0].path}; give --text of its split")
    if source.holes:
        warnings.warn(f"selections: {source.skipped()}", stacklevel=2)
    return source, words


def selections_card(
    run: str,
    settings: dict[str, Any],
    threshold: float,
    source: TrackSource,
    words: TextSource,
    weights: dict[str, str],
) -> Card:
    """The card of a selections cache: bound to the run's weights and settings, and to the caches' own cards."""
    bound = {"settings", "producer", "weights", "dataset", "split"}
    return Card(
        kind="selections",
        dataset=source.card.dataset,
        split=source.card.split,
        producer=run,
        settings=settings,
        weights=weights,
        extra={
            THRESHOLD: threshold,
            "tracks": [card.model_dump(include=bound) for card in source.cards],
            "text": [cache.card.model_dump(include=bound) for cache in words.caches],
        },
        root=source.card.root,
        **provenance(),
    )


def _weights_digest(path: Path) -> str:
    from rvos_cache.store import digest

    return digest(path.read_bytes())
