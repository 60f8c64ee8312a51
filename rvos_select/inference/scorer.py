"""The selector that scores caches: the best module of a run, or one that needs no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rvos_cache.errors import InputError
from rvos_cache.settings import build
from rvos_cache.store import Card
from rvos_select.data.caches import TrackSource
from rvos_select.data.cards import CacheCards, check_declared
from rvos_select.data.same_tracker import check_same_tracker, warn_of_other_settings
from rvos_select.data.texts import TextSource, check_same_encoder
from rvos_select.paths import PathLike
from rvos_select.runs.checkpoint import load_selector, run_cards, run_settings, trained_cards
from rvos_select.runs.metrics import warn_if_unfinished
from rvos_select.runs.seen import warn_of_seen_videos
from rvos_select.selectors import Selector, selector_class
from rvos_select.selectors.untrained import UntrainedSelector, check_untrained


@dataclass(frozen=True)
class Scorer:
    """A selector that is ready to score, and what the card of its selections says of it.

    name: of the selector; settings: of its run, or its own; weights: what tells it from others; run: the run's folder, "" without.
    """

    selector: Selector
    name: str
    settings: dict[str, Any]
    weights: dict[str, str]
    run: str = ""


OpenScorer = Callable[[TrackSource, TextSource], Scorer]
"""Caches -> the selector that scores them. Raises InputError for caches that it does not fit."""


def scorer_of(run: PathLike | None, selector: str | None = None, config: Mapping[str, Any] | None = None) -> OpenScorer:
    """That of the run `run`, or of the selector `selector` with the settings `config`, which needs no training.

    Raises InputError unless exactly one of both is given.
    """
    if (run is None) == (selector is None):
        raise InputError("give --run RUN, or --selector NAME of a selector that needs no training (all-tracks, clip-zero-shot)")
    if run is not None and config:
        raise InputError(f"{run}: its settings are those it was trained with; --set is for --selector NAME")
    return partial(scorer_of_run, Path(run)) if run is not None else partial(scorer_without_run, str(selector), config or {})


def scorer_of_run(run: Path, source: TrackSource, words: TextSource) -> Scorer:
    """The best module of a run. Raises InputError for caches by another tracker or encoder, or a damaged checkpoint."""
    selector = load_selector(run)
    _check_channels(run, selector, source, words)
    tracker_cards = {str(cache.path): cache.card for cache in source.caches}
    if selector.config.token_channels:
        check_same_tracker(trained_cards(run), f"{run} was trained", tracker_cards)
    else:
        # It reads frames, which another tracker's cache has not; then they are the dataset's.
        tracker_cards = {path: card for path, card in tracker_cards.items() if not card.channels}
    warn_of_other_settings(trained_cards(run), f"{run} was trained", tracker_cards)
    if not selector.encodes_text:
        check_same_encoder(run_cards(run)["text"], f"the run {run}", words)
    settings = run_settings(run)["settings"]
    warn_if_unfinished(run, int(settings.get("epochs", 0)))
    _bind(selector, source, words)
    warn_of_seen_videos(run, source)
    return Scorer(selector, settings["selector"], settings, {"best": selector.weights_digest}, str(run.absolute()))


def scorer_without_run(name: str, config: Mapping[str, Any], source: TrackSource, words: TextSource) -> Scorer:
    """The selector `name` with the settings `config`. Raises InputError if it must be trained, or the caches do not fit it."""
    channels = {"token_channels": source.channels, "word_channels": words.card.channels}
    selector = make_untrained(name, {**channels, **config}).eval()
    _bind(selector, source, words)
    settings = {"selector": name, "config": selector.config.model_dump(mode="json")}
    return Scorer(selector, name, settings, dict(selector.frozen_digests))


def make_untrained(name: str, config: Mapping[str, Any]) -> UntrainedSelector:
    """The selector `name` with the settings `config`, not bound. Raises InputError if it must be trained, or for wrong settings."""
    kind = check_untrained(selector_class(name), name)
    return kind(build(kind.Config, config, f"selector {name}"))


def _bind(selector: Selector, source: TrackSource, words: TextSource) -> None:
    used = CacheCards(source.cards, words.cards)
    selector.bind(used)
    # Measurements are of the ground truth: prediction does without.
    check_declared([name for name in selector.requires if not name.startswith("measured.")], used, type(selector).__name__)


def _check_channels(run: Path, selector: Selector, source: TrackSource, words: TextSource) -> None:
    trained = {"tokens": [card for card in trained_cards(run) if card.channels], "words": [run_cards(run)["text"]]}
    for what, caches, channels, expected in (
        ("tokens", source.caches, source.channels, selector.config.token_channels),
        ("words", words.caches, words.card.channels, selector.config.word_channels),
    ):
        if (what == "words" and selector.encodes_text) or (what == "tokens" and not expected):
            continue
        if channels != expected:
            own = next((cache for cache in caches if cache.card.channels), caches[0])
            # The same tracker may make tokens of several widths: then the settings tell them apart.
            first = trained[what][0]
            names = own.card.differences(first) if own.card.producer == first.producer else []
            settings = [name.removeprefix("settings.") for name in names if name.startswith("settings.")]
            differ = [name for name in settings if not name.endswith("checkpoint")]
            producers = ", ".join(dict.fromkeys(_described(card, differ) for card in trained[what]))
            raise InputError(
                f"{own.path}: {what} of {channels} channels by {_described(own.card, differ)}, {run} was trained with {expected} by "
                f"{producers}; extract them alike"
            )


def _described(card: Card, settings: Sequence[str]) -> str:
    """The producer of a cache, with those of the `settings` that it has."""
    own = ", ".join(f"{name}={card.settings[name]}" for name in settings if name in card.settings)
    return f"{card.producer} with {own}" if own else card.producer
