"""What the cards of caches say of the caches: their tokens, features and measurements, before any video is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rvos_cache.axes import format_dims
from rvos_cache.errors import InputError
from rvos_cache.soft_overlap import SOFT_SPECS
from rvos_cache.store import Card

WRITERS = {spec.name: "tracker dvis, or of vita with --set pool=20" for spec in SOFT_SPECS}
"""Measurement -> the trackers here that write it."""
Spec = Mapping[str, Any]
"""A feature or measurement as a card lists it: name, dims, dtype, by_frame."""


class CacheCards(NamedTuple):
    """The cards of the caches that a selector works on."""

    tracks: Sequence[Card]
    text: Sequence[Card] = ()


def part_array(part: str) -> tuple[str, str]:
    """Prefix and array that a part of a batch names: ("measured", "soft") of "measured.soft" and of "measured.soft.video"."""
    prefix, _, name = part.partition(".")
    return prefix, name.removesuffix(".video") if prefix == "measured" else name


def check_declared(
    requires: Iterable[str], cards: CacheCards, selector: str, advice: Callable[[str], str] = lambda name: ""
) -> None:
    """Raises InputError for a feature or measurement in `requires` that no tracks cache of a set declares.

    advice: name -> what else can be done where it is missing, for the message.
    """
    for name in requires:
        prefix, array = part_array(name)
        kind = {"features": "feature", "frames": "feature", "measured": "measurement"}.get(prefix)
        if kind is None:
            continue
        for split in dict.fromkeys((card.dataset, card.split) for card in cards.tracks):
            own = [card for card in cards.tracks if (card.dataset, card.split) == split]
            dims = {str(s["name"]): tuple(s["dims"]) for card in own for s in specs_of(card, kind)}
            if array not in dims:
                _check_has_tracks(own, cards.tracks, selector)
                writers = f"of {WRITERS[array]}" if array in WRITERS else "of a tracker that writes it"
                other = advice(name)
                raise InputError(
                    f"selector {selector}: requires {name!r}, but no tracks cache of {'/'.join(split)} declares the {kind} "
                    f"{array!r} (there are: {', '.join(dims) or 'none'}); give the cache {writers}{', or ' if other else ''}{other}"
                )
            if prefix == "frames":
                frame_list(array, dims, f"selector {selector}")


def _check_has_tracks(own: Sequence[Card], cards: Sequence[Card], selector: str) -> None:
    """Raises InputError where the caches of one split, `own`, hold no tracks, but others among `cards` do: a slip of the split."""
    others = [card for card in cards if card.channels]
    if others and not any(card.channels for card in own):
        split, producers = f"{own[0].dataset}/{own[0].split}", ", ".join(card.producer for card in own)
        raise InputError(
            f"selector {selector}: the cache of {producers} is of {split}, and no cache of tracks of {split} was given (that of "
            f"{others[0].producer} is of {others[0].dataset}/{others[0].split}); give the caches of one split together"
        )


def frame_list(name: str, dims: Mapping[str, tuple[str | int, ...]], label: str) -> str | None:
    """The feature that lists the frames which the first axis of the feature `name` holds; None where it has the axis T.

    dims: of all features. Raises InputError, starting with `label`, for a feature without an axis of frames.
    """
    own = dims[name]
    if "T" in own:
        return None
    lists = [other for other, other_dims in dims.items() if other != name and other_dims == own[:1]]
    if len(lists) == 1 and isinstance(own[0], str) and own[0] not in "NEA":
        return lists[0]
    raise InputError(
        f"{label}: the feature {name!r}, {format_dims(own)}, has no axis of frames, expected T (or as its first axis a letter for "
        f"which one other feature, of that axis alone, lists the frames); read it as features.{name}"
    )


def token_channels(cards: Iterable[Card]) -> int:
    """C of the tokens of tracks caches; 0 where none of them holds tracks."""
    return next((card.channels for card in cards if card.channels), 0)


def check_same_channels(cards: Sequence[tuple[str, Card]]) -> None:
    """Raises InputError when tokens of the caches, (path, card), differ in channels. Caches without tracks have none."""
    with_tracks = [(path, card) for path, card in cards if card.channels]
    for path, card in with_tracks[1:]:
        first_path, first = with_tracks[0]
        if card.channels != first.channels:
            raise InputError(
                f"{path}: tokens of {card.channels} channels, {first_path} has {first.channels}; caches that are read together "
                "need the same"
            )


def specs_of(card: Card, kind: str) -> list[Spec]:
    """The features that a card lists, or with kind "measurement" its measurements."""
    return list(card.feature_specs if kind == "feature" else getattr(card, "measurement_specs", []))
