"""How a video of the user's own becomes tracks, words and scores: as a run was trained, or as a selector without a run wants it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rvos_cache.clip.pooling import CLIP, ClipPooling, PoolSettings
from rvos_cache.errors import InputError
from rvos_cache.exchange.import_masks import IMPORTED
from rvos_cache.exchange.import_sola import PRODUCER as SOLA_FILES
from rvos_cache.exchange.pool_clip import pooled_card, unpooled_card
from rvos_cache.extraction import tracker_card
from rvos_cache.plugins import checked_weights
from rvos_cache.settings import build
from rvos_cache.store import Card, canonical, digest
from rvos_cache.text import TEXT_ENCODERS, TextEncoder, encoder_class, open_encoder
from rvos_cache.trackers import Tracker, open_tracker, tracker_class
from rvos_select.data.cards import CacheCards
from rvos_select.data.pixels import card_has_pixels
from rvos_select.inference.scorer import OpenScorer, make_untrained, scorer_of_run, scorer_without_run
from rvos_select.runs.checkpoint import best_folder, load_selector, run_cards, trained_cards
from rvos_select.selectors.base import WEIGHTS

CHECKPOINT_OPTION = re.compile(r"--set \w*checkpoint=FOLDER")
FRAMES = "frames"
"""The tracker that stores the frames themselves."""


@dataclass(frozen=True)
class Recipe:
    """What answers are made with.

    name: the run's folder or the selector's name, for people; weights: digest of the module; tracks, text: cards of the caches,
    whose dataset is not read; encoder: of the words; open_tracker, open_pooling: what finds the tracks, and the CLIP that pools them
    (None: they are not pooled), opened when they are needed; open_scorer: what scores them; frames: of a selector that reads frames
    beside the tracks, the card of their cache.
    """

    name: str
    weights: str
    tracks: Card
    text: Card
    encoder: TextEncoder
    open_tracker: Callable[[], Tracker]
    open_pooling: Callable[[], ClipPooling] | None
    open_scorer: OpenScorer
    frames: Card | None = None

    def of_frames(self) -> Recipe | None:
        """That of the cache of frames, None where the selector reads none."""
        if self.frames is None:
            return None
        return replace(
            self, tracks=self.frames, open_tracker=partial(_tracker_of_run, Path(self.name), self.frames), open_pooling=None
        )


def recipe_of_run(run: Path) -> Recipe:
    """The tracker, the text encoder and the CLIP that the run was trained with.

    Raises InputError if no tracker finds such tracks in a new video, or the encoder's weights are others now.
    """
    cards, trained = run_cards(run), trained_cards(run)
    # The first cache may be one of frames.
    tracks, text = next((card for card in trained if card.channels), cards["tracks"]), cards["text"]
    if tracks.training_only:
        raise InputError(f"{run}: trained on ground-truth tracks only; train with tracks that a tracker finds")
    if tracks.producer == SOLA_FILES or IMPORTED.items() <= tracks.settings.items():
        raise InputError(
            f"{run}: trained on imported tracks, which no tracker here finds in a new video; import this one's too, then predict"
        )
    encoder = open_encoder(text.producer, build(encoder_class(text.producer).Settings, text.settings, str(run)))
    _check_same_weights(encoder.weight_hashes(), text.weights, f"{run}, text encoder {text.producer}")
    weights = digest((best_folder(run) / WEIGHTS).read_bytes())
    alone, open_pooling = tracks, None
    if CLIP in tracks.extra:
        alone, open_pooling = unpooled_card(tracks), partial(_pooling_of_run, run, tracks)
    return Recipe(
        str(run.resolve()),
        weights,
        tracks,
        text,
        encoder,
        partial(_tracker_of_run, run, alone),
        open_pooling,
        partial(scorer_of_run, run),
        _frames_of_run(run, tracks, trained),
    )


def _frames_of_run(run: Path, tracks: Card, trained: Sequence[Card]) -> Card | None:
    """The card of the frames that the run's selector reads beside `tracks`: that of training, or of unchanged frames; None where it
    reads none."""
    if card_has_pixels(tracks) or "pixels" not in _requires(run):
        return None
    own = next((card for card in trained if card_has_pixels(card)), None)
    if own is not None:
        return own
    settings = build(tracker_class(FRAMES).Settings, {"short_side": 0}, f"tracker {FRAMES}")
    return tracker_card(FRAMES, open_tracker(FRAMES, settings), settings)


def _requires(run: Path) -> Sequence[str]:
    """The parts of a batch that the run's selector reads, as far as it knows them before it is bound."""
    try:
        return tuple(load_selector(run).requires)
    # A selector of one's own may compute them from its frozen parts; it reads no frames beside its tracks then.
    except (AttributeError, KeyError, ValueError):
        return ()


def recipe_without_run(
    selector: str, config: Mapping[str, Any], tracker: str, overrides: Mapping[str, Any], pooling: Mapping[str, Any]
) -> Recipe:
    """A selector that needs no training, on the tracks of `tracker`.

    config, overrides, pooling: settings of the selector, of the tracker, and of `rvos-cache pool-clip` beside its checkpoint.
    Raises InputError for a selector that must be trained, a tracker that prompts with the ground truth, or wrong settings.
    """
    module = make_untrained(selector, config)
    inputs = module.inputs()
    if tracker_class(tracker).wants_ground_truth:
        raise InputError(
            f"tracker {tracker}: prompts with ground truth, which a video of your own has not; give another --tracker"
        )
    settings = build(encoder_class(inputs.encoder).Settings, inputs.encoder_settings, f"text encoder {inputs.encoder}")
    encoder = open_encoder(inputs.encoder, settings)
    text = Card(
        kind="text",
        dataset="",
        split="",
        producer=inputs.encoder,
        settings=settings.model_dump(mode="json"),
        weights=checked_weights(encoder, f"text encoder {inputs.encoder}", is_custom=inputs.encoder not in TEXT_ENCODERS),
        channels=encoder.channels,
    )
    tracker_settings = build(tracker_class(tracker).Settings, overrides, f"tracker {tracker}")
    opened = open_tracker(tracker, tracker_settings)
    tracks, open_pooling = tracker_card(tracker, opened, tracker_settings), None
    if inputs.pooling is not None:
        clip = ClipPooling(build(PoolSettings, {**inputs.pooling, **pooling}, "pool-clip"))
        tracks, open_pooling = pooled_card(tracks, clip), lambda: clip
    elif pooling:
        raise InputError(f"selector {selector}: reads no features of CLIP; leave out --clip-set")
    # A CLIP that cannot score is refused here, before the tracks, which take the time.
    module.frozen_parts(CacheCards([tracks], [text]))
    weights = digest(canonical([selector, module.config.model_dump(mode="json")]))
    return Recipe(
        selector, weights, tracks, text, encoder, lambda: opened, open_pooling, partial(scorer_without_run, selector, config)
    )


def _tracker_of_run(run: Path, card: Card) -> Tracker:
    """The tracker of a card. Raises InputError if its weights are not those of the card."""
    settings = build(tracker_class(card.producer).Settings, card.settings, str(run))
    try:
        tracker = open_tracker(card.producer, settings)
    except InputError as error:
        # A run has its settings; where a checkpoint lies is all that may change.
        advice = "bring it back, or put it in a folder of RVOS_CHECKPOINTS"
        raise InputError(f"{run}, tracker {card.producer}: {CHECKPOINT_OPTION.sub(advice, str(error))}") from error
    # A run of SOLA's released weights names its tracker, whose digest is not known.
    if card.weights:
        _check_same_weights(tracker.weight_hashes(), card.weights, f"{run}, tracker {card.producer}")
    return tracker


def _pooling_of_run(run: Path, card: Card) -> ClipPooling:
    """The CLIP that pooled the tracks of a card. Raises InputError if it is not there, or another one is."""
    stored = card.extra[CLIP]
    values = {name: stored[name] for name in PoolSettings.model_fields if name in stored}
    try:
        pooling = ClipPooling(build(PoolSettings, values, str(run)))
    except InputError as error:
        raise InputError(
            f"{run}: trained on tracks pooled with CLIP {stored['checkpoint']}, which cannot be opened: {error}; or put it in a folder "
            "of RVOS_CHECKPOINTS"
        ) from error
    (own,) = pooling.image.weights.values()
    _check_same_weights({"image": own}, {"image": stored["image"]}, f"{run}, CLIP {stored['checkpoint']}")
    return pooling


def _check_same_weights(weights: Mapping[str, str], trained: Mapping[str, str], location: str) -> None:
    """Raises InputError when what runs now has other weights than what the run was trained on."""
    for name in sorted(weights.keys() | trained):
        if weights.get(name) != trained.get(name):
            now, before = (digests.get(name, "none that is named") for digests in (weights, trained))
            raise InputError(
                f"{location}: {name} is {now}, the run was trained with {before}; bring that one back, or extract and train again"
            )
