"""Whether tokens come from the frozen model that a module was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from rvos_cache.clip.pooling import CLIP
from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_select.data.pooling import SETTINGS


def check_same_tracker(trained: Sequence[Card], label: str, cards: Mapping[str, Card]) -> None:
    """Raises InputError when a card's tokens come from another tracker than those trained on.

    A module may be applied to tracks that were prompted in another way (SOLA trains on ground-truth and grid tracks, and
    selects among grid and box tracks), but of the same frozen model: the same tracker, or the same checkpoint.
    trained: cards of the tracks caches trained on; label: who was trained, as "RUN was trained"; cards: path -> card.
    """
    digests: dict[str, set[str]] = {}
    for card in trained:
        for name, value in _tracker_weights(card).items():
            digests.setdefault(name, set()).add(value)
    known = {value for values in digests.values() for value in values}
    for path, card in cards.items():
        weights = _tracker_weights(card)
        for name in sorted(weights.keys() & digests.keys()):
            if weights[name] not in digests[name]:
                expected = " or ".join(sorted(digests[name]))
                raise InputError(
                    f"{path}: tokens by {name} of digest {weights[name]}, {label} with {expected}; extract them alike"
                )
        # A tracker of several models names its weights by part: the digests tell which it shares.
        same_model = any(value in known for value in weights.values())
        # A cache without tracks has no tokens: what its features are is declared by their names.
        if card.channels and not same_model and all(other.producer != card.producer for other in trained):
            names = ", ".join(sorted({other.producer for other in trained if other.channels}))
            raise InputError(f"{path}: tokens of tracker {card.producer}, {label} with {names}; extract them alike")
        _check_same_pooling(trained, label, path, card)


def _tracker_weights(card: Card) -> dict[str, str]:
    """The digests of the tracker itself, without that of the CLIP that pooled its tracks."""
    pooled = card.extra.get(CLIP, {})
    return {name: value for name, value in card.weights.items() if value != pooled.get("image")}


def _check_same_pooling(trained: Sequence[Card], label: str, path: str, card: Card) -> None:
    """Raises InputError when the tracks of `card` were pooled with another CLIP; warns where with frames of another size."""
    pooled, others = card.extra.get(CLIP), [other.extra[CLIP] for other in trained if CLIP in other.extra]
    if pooled is None or not others:
        return
    same = [other for other in others if other["image"] == pooled["image"]]
    if not same:
        raise InputError(
            f"{path}: pooled with CLIP {pooled['checkpoint']} of digest {pooled['image']}, {label} with {others[0]['image']}; pool the "
            "tracks alike"
        )
    for name in SETTINGS:
        if all(other[name] != pooled[name] for other in same):
            warnings.warn(f"{path}: pooled with {name} = {pooled[name]!r}, {label} with {same[0][name]!r}", stacklevel=4)


def warn_of_other_settings(trained: Sequence[Card], label: str, cards: Mapping[str, Card]) -> None:
    """Warns where the settings of a tracker differ from those trained on. Arguments as `check_same_tracker`."""
    for path, card in cards.items():
        same_tracker = [other for other in trained if other.producer == card.producer]
        different = [_other_settings(card, other) for other in same_tracker]
        if all(different) and same_tracker:
            name = different[0][0]
            value, trained_value = card.value(name), same_tracker[0].value(name)
            what = "tracks" if card.channels else "frames"
            warnings.warn(f"{path}: {what} with {name} = {value!r}, {label} with {trained_value!r}", stacklevel=3)


def _other_settings(card: Card, other: Card) -> list[str]:
    """Settings of a tracker that differ. A checkpoint of the same weights may be named in another way."""
    same = card.weights and sorted(card.weights.values()) == sorted(other.weights.values())
    names = [name for name in card.differences(other) if name.startswith("settings.") or name == "extra.code"]
    return [name for name in names if name != "settings.checkpoint" or not same]
