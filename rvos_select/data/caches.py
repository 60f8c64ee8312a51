"""Several caches as one: tracks of the same split join their tracks, caches of other splits join their videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.mask_runs import MaskRuns
from rvos_cache.masks import RleMasks
from rvos_cache.store import Card, TextCache, TrackCache, TrackInfo, format_uri, open_backend, read_card
from rvos_cache.text.cues import CUES, DEFAULT_TAGGER, Tagger
from rvos_cache.types import VIDEO, Expression, GroundTruth, Overlap, Words


class TrackSource:
    """Tracks caches read as one, with TrackCache's getters. Raises InputError when they do not fit together.

    of: video -> the caches that hold it, one or, where several of its split were given, each of them. holes: video that one
    of those lacks -> what is wrong and the remedy; its tracks are not read, its answers are.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise InputError("no tracks cache given; add --cache C.zarr")
        self.caches = [TrackCache(path) for path in paths]
        self.of: dict[str, list[TrackCache]] = {}
        self.holes: dict[str, str] = {}
        self._partly: dict[str, TrackCache] = {}
        first = self.caches[0].card
        for cache in self.caches:
            if cache.card.channels != first.channels:
                raise InputError(
                    f"{cache.path}: tokens of {cache.card.channels} channels, {self.caches[0].path} has {first.channels}; "
                    "caches that are read together need the same"
                )
            for video_id in cache.video_ids():
                held = self.of.setdefault(video_id, [])
                if held and (held[0].card.dataset, held[0].card.split) != (cache.card.dataset, cache.card.split):
                    raise InputError(f"{cache.path}: video {video_id} is also in {held[0].path}, of another split")
                if held and (mine := _frames_of(cache)) != (theirs := _frames_of(held[0])):
                    raise InputError(
                        f"{cache.path}: tracks of {mine} frames, those of {held[0].path} are of {theirs} ones; "
                        "give caches of one split extracted with the same --corrupt"
                    )
                held.append(cache)
        for video_id, held in list(self.of.items()):
            expected = [c for c in self.caches if (c.card.dataset, c.card.split) == (held[0].card.dataset, held[0].card.split)]
            absent = [c.path for c in expected if c not in held]
            if absent:
                self.holes[video_id] = f"{absent[0]}: lacks video {video_id} that {held[0].path} has; extract it there too"
                self._partly[video_id] = self.of.pop(video_id)[0]
        if self.holes and not self.of:
            raise InputError(next(iter(self.holes.values())))

    @property
    def card(self) -> Card:
        """The first cache's card."""
        return self.caches[0].card

    @property
    def cards(self) -> list[Card]:
        """The card of each cache, in the order given."""
        return [cache.card for cache in self.caches]

    def video_ids(self) -> tuple[str, ...]:
        """The videos whose tracks can be read, sorted."""
        return tuple(sorted(self.of))

    def skipped(self) -> str:
        """One line on the holes, for a command that goes on without them."""
        return f"{len(self.holes)} videos are left out, because not every cache has them; first {min(self.holes.items())[1]}"

    def _held(self, video_id: str) -> list[TrackCache]:
        try:
            return self.of[video_id]
        except KeyError:
            raise InputError(self.absence(video_id)) from None

    def absence(self, video_id: str) -> str:
        """Why a video's tracks cannot be read, and the remedy."""
        unknown = f"{self.caches[0].path}: no video {video_id}; run the extraction again to add it"
        return self.holes.get(video_id, unknown)

    def answering(self, video_id: str) -> TrackCache | None:
        """The first cache that holds the video's expressions and ground truth, also where another lacks it."""
        held = self.of.get(video_id)
        return held[0] if held else self._partly.get(video_id)

    def info(self, video_id: str) -> TrackInfo:
        """Joined info; prompts are indices into the expressions of the first cache."""
        infos = [cache.info(video_id) for cache in self._held(video_id)]
        first = infos[0]
        if len(infos) == 1:
            return first
        for other, cache in zip(infos, self._held(video_id)):
            if (other.frame_names, other.size) != (first.frame_names, first.size):
                raise InputError(f"{cache.path}, video {video_id}: other frames than {self._held(video_id)[0].path}")
        position = {e.expression_id: i for i, e in enumerate(first.expressions)}
        prompts = []
        for other, cache in zip(infos, self._held(video_id)):
            asked = [e.expression_id for e in other.expressions]
            lost = [asked[p] for p in other.prompt if p != VIDEO and asked[p] not in position]
            if lost:
                raise InputError(f"{cache.path}, video {video_id}: tracks of expression {lost[0]}, which others lack")
            prompts.append(np.array([VIDEO if p == VIDEO else position[asked[p]] for p in other.prompt], np.int32))
        return TrackInfo(
            video_id,
            first.frame_names,
            first.size,
            first.expressions,
            first.object_ids,
            sum(i.tracks for i in infos),
            tuple(o for i in infos for o in i.origin),
            np.concatenate(prompts),
            np.concatenate([i.prompt_frame for i in infos]),
            np.concatenate([i.prompt_box for i in infos]),
        )

    def tokens(self, video_id: str) -> NDArray[np.floating]:
        """(N, T, C)."""
        return np.concatenate([cache.tokens(video_id) for cache in self._held(video_id)])

    def presence(self, video_id: str) -> NDArray[np.float16]:
        """(N, T)."""
        return np.concatenate([cache.presence(video_id) for cache in self._held(video_id)])

    def masks(self, video_id: str, tracks: Iterable[int] | None = None) -> RleMasks:
        """(N, T), or the masks of the given tracks alone, in that order. Raises IndexError for a track beyond the last."""
        return RleMasks.from_runs(self.runs(video_id, tracks))

    def runs(self, video_id: str, tracks: Iterable[int] | None = None) -> MaskRuns:
        """The same as the places where runs end: what pixels are drawn from soonest."""
        caches = self._held(video_id)
        if tracks is None or len(caches) == 1:
            held = [cache.runs(video_id, tracks) for cache in caches]
            return held[0] if len(held) == 1 else MaskRuns.concatenate(held)
        ends = np.cumsum([cache.info(video_id).tracks for cache in caches])
        wanted = [range(ends[-1])[int(k)] for k in tracks]
        owners = np.searchsorted(ends, wanted, side="right")
        # Each cache is asked for its own tracks alone; one for none of them, where nothing is selected.
        parts, order = [], np.argsort(owners, kind="stable")
        for o in sorted({0, *map(int, owners)}):
            before = ends[o] - caches[o].info(video_id).tracks
            parts.append(caches[o].runs(video_id, [wanted[i] - before for i in order if owners[i] == o]))
        return MaskRuns.concatenate(parts).select(np.argsort(order))

    def overlap(self, video_id: str) -> Overlap:
        """Counts of all tracks. Raises InputError when the split hides its answers."""
        parts = [cache.overlap(video_id) for cache in self._held(video_id)]
        first = parts[0]
        return Overlap(
            np.concatenate([p.inter for p in parts]),
            np.concatenate([p.area for p in parts]),
            first.gt_area,
            first.annotated,
        )

    def ground_truth(self, video_id: str) -> GroundTruth:
        """The annotated objects. Raises InputError when the split hides its answers."""
        return self._held(video_id)[0].ground_truth(video_id)

    def feature(self, video_id: str, name: str, frames: slice | None = None) -> NDArray[np.generic]:
        """The extra array `name` of the only cache that has it."""
        return self.having(video_id, name).feature(video_id, name, frames)

    def having(self, video_id: str, name: str) -> TrackCache:
        """The only cache of the video that has the extra array `name`. Raises InputError for none or several."""
        having = [c for c in self._held(video_id) if any(s["name"] == name for s in c.card.feature_specs)]
        if len(having) != 1:
            found = "no cache holds" if not having else f"{len(having)} caches hold"
            held = ", ".join(str(s["name"]) for c in self._held(video_id) for s in c.card.feature_specs) or "none"
            raise InputError(
                f"{self.caches[0].path}, video {video_id}: {found} the feature {name!r} (there are: {held}); give the one "
                "cache of a tracker that writes it"
            )
        return having[0]


def _frames_of(cache: TrackCache) -> str:
    return cache.card.extra.get("corrupt", "clean")


class TextSource:
    """Text caches read as one. Raises InputError when they do not fit together."""

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise InputError("no text cache given; add --text T.zarr")
        self.caches = [TextCache(path) for path in paths]
        widths = {cache.card.channels for cache in self.caches}
        if len(widths) > 1:
            raise InputError(f"{self.caches[1].path}: words of {sorted(widths)} channels; text caches need the same width")
        self.of: dict[str, TextCache] = {}
        for cache in self.caches:
            for video_id in cache.video_ids():
                if video_id in self.of:
                    raise InputError(f"{cache.path}: video {video_id} is also in {self.of[video_id].path}; give one of them")
                self.of[video_id] = cache

    @property
    def card(self) -> Card:
        """The first cache's card."""
        return self.caches[0].card

    @cached_property
    def videos(self) -> frozenset[str]:
        """All videos."""
        return frozenset(self.of)

    def _cache(self, video_id: str) -> TextCache:
        try:
            return self.of[video_id]
        except KeyError:
            raise InputError(
                f"{self.caches[0].path}: no words of video {video_id}; run rvos-cache extract-text of its split"
            ) from None

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """All expressions of the video in file order."""
        return self._cache(video_id).expressions(video_id)

    def words(self, video_id: str) -> tuple[Words, ...]:
        """The words of each expression."""
        return self._cache(video_id).words(video_id)

    def tagger(self, video_id: str) -> Tagger:
        """What made the tags of the video's words. Raises InputError for one whose tags have no known meaning."""
        cache = self._cache(video_id)
        made = cache.card.settings.get("tagger", DEFAULT_TAGGER)
        for known in CUES:
            if made == known:
                return known
        raise InputError(f"{cache.path}: tags of {made!r}, cues are known of {', '.join(CUES)}; --set tagger in extract-text")


def same_words(wanted: Card, where: str, words: TextSource) -> None:
    """Raises InputError, naming the field, when words come from another encoder than those of `wanted`, the card of `where`."""
    for cache in words.caches:
        for name in cache.card.differences(wanted):
            if name.partition(".")[0] in ("producer", "settings", "weights"):
                have, want = cache.card.value(name), wanted.value(name)
                raise InputError(f"{cache.path}: words with {name} = {have!r}, {where} has {want!r}; extract them alike")


def find_text(tracks: Path) -> Path:
    """The text cache of the same dataset and split beside a tracks cache. Raises InputError for none or several."""
    card, found = read_card(tracks), []
    for path in open_backend(tracks).sibling_caches():
        if open_backend(path).has_card():
            other = read_card(path)
            if (other.kind, other.dataset, other.split) == ("text", card.dataset, card.split):
                found.append(path)
    if len(found) != 1:
        wanted = f"wanted one text cache of {card.dataset} {card.split} beside it, found {', '.join(found) or 'none'}"
        raise InputError(f"{format_uri(tracks)}: {wanted}; give --text")
    return Path(found[0])


def texts_of(tracks: Sequence[Path], texts: Sequence[Path]) -> list[Path]:
    """The text caches given, or the one beside each tracks cache, none twice."""
    return list(texts) or list(dict.fromkeys(find_text(path) for path in tracks))


def candidates(info: TrackInfo, expression_id: str) -> NDArray[np.bool_]:
    """bool (N,): the tracks that the expression may choose, those of the video and those it asked for itself.

    An expression that the tracks cache does not know, added after an extraction that read no sentence, may choose every
    track of the video.
    """
    position = {e.expression_id: i for i, e in enumerate(info.expressions)}
    return (info.prompt == VIDEO) | (info.prompt == position.get(expression_id, VIDEO))
