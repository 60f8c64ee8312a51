"""Text caches: several read as one, and the one that belongs to a tracks cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.store import Card, TextCache, format_uri, open_backend, read_card
from rvos_cache.text.cues import CUES, DEFAULT_TAGGER, Tagger
from rvos_cache.types import Expression, Words
from rvos_select.data.text_cues import WITH_IDS
from rvos_select.paths import Paths, as_paths


class TextSource:
    """Text caches read as one. Raises InputError when they do not fit together. cache_of: video -> the cache that holds it."""

    def __init__(self, paths: Paths) -> None:
        paths = as_paths(paths)
        if not paths:
            raise InputError("no text cache given; add --text T.zarr")
        self.caches = [TextCache(path) for path in paths]
        widths = {cache.card.channels for cache in self.caches}
        if len(widths) > 1:
            raise InputError(f"{self.caches[1].path}: words of {sorted(widths)} channels; text caches need the same width")
        self.cache_of: dict[str, TextCache] = {}
        for cache in self.caches:
            for video_id in cache.video_ids():
                if video_id in self.cache_of:
                    raise InputError(
                        f"{cache.path}: video {video_id} is also in {self.cache_of[video_id].path}; give one of them"
                    )
                self.cache_of[video_id] = cache

    @property
    def card(self) -> Card:
        """The first cache's card."""
        return self.caches[0].card

    @property
    def cards(self) -> list[Card]:
        """The card of each cache, in the order given."""
        return [cache.card for cache in self.caches]

    @cached_property
    def videos(self) -> frozenset[str]:
        """All videos."""
        return frozenset(self.cache_of)

    def _cache(self, video_id: str) -> TextCache:
        try:
            return self.cache_of[video_id]
        except KeyError:
            raise InputError(
                f"{self.caches[0].path}: no words of video {video_id}; run rvos-cache extract-text of its split"
            ) from None

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """All expressions of the video in file order."""
        return self._cache(video_id).expressions(video_id)

    def content(self, video_id: str) -> str:
        """The identity of the video's words, see `rvos_cache.store.content`."""
        return self._cache(video_id).content(video_id)

    def words(self, video_id: str, with_ids: bool = False) -> tuple[Words, ...]:
        """The words of each expression. Raises InputError if they have no ids and `with_ids`."""
        cache = self._cache(video_id)
        words = cache.words(video_id)
        if with_ids and any(w.ids is None for w in words):
            raise InputError(f"{cache.path}: words of {cache.card.producer!r} without ids; {WITH_IDS}")
        return words

    def tagger(self, video_id: str) -> Tagger:
        """The tagger of the video's words. Raises InputError for one whose tags have no known meaning."""
        cache = self._cache(video_id)
        name = cache.card.settings.get("tagger", DEFAULT_TAGGER)
        for known in CUES:
            if name == known:
                return known
        raise InputError(f"{cache.path}: tags of {name!r}, cues are known of {', '.join(CUES)}; --set tagger in extract-text")


def check_same_encoder(expected: Card, location: str, words: TextSource) -> None:
    """Raises InputError, naming the field, when words come from another encoder than `expected`, the card of `location`.

    A checkpoint is its weights, whatever folder or hub name they were loaded from.
    """
    for cache in words.caches:
        digests, others = (sorted(card.weights.values()) for card in (cache.card, expected))
        same_weights = bool(digests) and digests == others
        for name in cache.card.differences(expected):
            if same_weights and (name == "settings.checkpoint" or name.startswith("weights.")):
                continue
            if name.partition(".")[0] in ("producer", "settings", "weights"):
                value, other = cache.card.value(name), expected.value(name)
                raise InputError(f"{cache.path}: words with {name} = {value!r}, {location} has {other!r}; extract them alike")


def find_text(tracks: Path) -> Path:
    """The text cache of the same dataset and split next to a tracks cache. Raises InputError for none or several."""
    card, paths = read_card(tracks), []
    for path in open_backend(tracks).sibling_caches():
        if open_backend(path).has_card():
            other = read_card(path)
            if (other.kind, other.dataset, other.split) == ("text", card.dataset, card.split):
                paths.append(path)
    if len(paths) != 1:
        expected = f"expected one text cache of {card.dataset} {card.split} next to it, found {', '.join(paths) or 'none'}"
        raise InputError(f"{format_uri(tracks)}: {expected}; give --text")
    return Path(paths[0])


def texts_of(tracks: Sequence[Path], texts: Sequence[Path]) -> list[Path]:
    """The text caches given, or the one next to each tracks cache, none twice."""
    return list(texts) or list(dict.fromkeys(find_text(path) for path in tracks))
