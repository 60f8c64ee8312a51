"""What the cards of caches say of the CLIP that pooled the tracks and encoded the words: it must be one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rvos_cache.clip.pooling import CLIP
from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_select.data.cards import CacheCards

SETTINGS = ("short_side", "long_side", "square")
"""Settings of `rvos-cache pool-clip` that determine the features."""


def pooling_of(cards: CacheCards, parts: Sequence[str] = ("image", "text")) -> Mapping[str, Any]:
    """The entry `extra["clip"]` of the first tracks cache.

    parts: of CLIP, which all caches must have in common. Raises InputError: no tracks cache is given, one is not pooled or pooled by
    another CLIP, or words are not of this CLIP.
    """
    if not cards.tracks:
        raise InputError("no tracks cache given; add --cache C.zarr")
    records = [_pooled(card) for card in cards.tracks]
    first = records[0]
    for card, record in zip(cards.tracks, records):
        for part in parts:
            if record[part] != first[part]:
                raise InputError(
                    f"{card_name(card)}: pooled with {record['checkpoint']}, {card_name(cards.tracks[0])} with {first['checkpoint']}, "
                    f"whose {part} differs; pool them alike"
                )
    check_words(cards.text, first["text"], first["checkpoint"])
    return first


def check_same_sizes(cards: Sequence[Card]) -> None:
    """Raises InputError for pooled tracks whose frames were shown to CLIP at another size than those of the first cache."""
    first = _pooled(cards[0])
    for card in cards:
        record = _pooled(card)
        for name in SETTINGS:
            if record.get(name) != first.get(name):
                raise InputError(
                    f"{card_name(card)}: pooled with {name} = {record.get(name)!r}, {card_name(cards[0])} with {first.get(name)!r}; "
                    "pool them alike"
                )


def check_words(text: Sequence[Card], digest: str, clip: str) -> None:
    """Raises InputError for words that are not of the text tower of `digest`. clip: its checkpoint, for the message."""
    for card in text:
        if digest not in card.weights.values():
            raise InputError(
                f"{card_name(card)}: not of the CLIP {clip}; rvos-cache extract-text --encoder clip --set checkpoint={clip}, then give "
                "--text"
            )


def card_name(card: Card) -> str:
    """What an error calls the cache of a card: "tracks of mevis/train by flow"."""
    kind = "words" if card.kind == "text" else "tracks"
    return f"{kind} of {card.dataset}/{card.split} by {card.producer}"


def _pooled(card: Card) -> Mapping[str, Any]:
    record = card.extra.get(CLIP)
    if record is None:
        raise InputError(
            f"{card_name(card)}: its tracks have no features of CLIP; rvos-cache pool-clip C.zarr --set checkpoint=CLIP"
        )
    return record  # type: ignore[no-any-return]
