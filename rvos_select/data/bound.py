"""Whether caches belong together: words and selections are bound to the tracks that they are used with, by content."""

from __future__ import annotations

from rvos_cache.differences import differences
from rvos_cache.errors import InputError
from rvos_cache.identity import expressions_difference, frames_difference
from rvos_cache.store import SelectionCache
from rvos_cache.system.counts import counted
from rvos_select.data.caches import TrackSource
from rvos_select.data.texts import TextSource


def check_same_sentences(tracks: TrackSource, texts: TextSource, video_id: str) -> None:
    """Raises InputError when the words of a video are of other sentences than its tracks cache lists.

    Videos of two datasets may have the same name. The words may have sentences that were added since the extraction, if the
    text cache is of the same split as the tracks.
    """
    expressions, text = texts.expressions(video_id), texts.cache_of[video_id]
    info, cache = tracks.info(video_id), tracks.caches_of[video_id][0]
    difference = expressions_difference(info.expressions, expressions, ("is", "here it is"))
    if difference is not None:
        raise InputError(
            f"{text.path}, video {video_id}: other sentences than {cache.path} lists: {difference}; give --text of its "
            "dataset and split, or, if the dataset was changed, rvos-cache relabel the tracks and extract-text into a new path"
        )
    if (text.card.dataset, text.card.split) != (cache.card.dataset, cache.card.split):
        known = {e.expression_id for e in info.expressions}
        unknown = next((e for e in expressions if e.expression_id not in known), None)
        if unknown is not None:
            raise InputError(
                f"{text.path}, video {video_id}: words of {text.card.dataset} {text.card.split} with the sentence "
                f"{unknown.text!r}, which {cache.path} of {cache.card.dataset} {cache.card.split} does not list; give --text of its "
                "dataset and split"
            )


def check_cards(selections: SelectionCache, tracks: TrackSource) -> None:
    """Raises InputError, naming the field, when the selections were made of other caches than these, or in another order."""
    cards = selections.card.extra.get("tracks")
    if cards is None:
        return
    fix = "give the same --cache as for predict"
    if len(cards) != len(tracks.caches):
        names = ", ".join(f"{card['producer']} of {card['dataset']}/{card['split']}" for card in cards)
        count = len(tracks.caches)
        origin = f"made of {counted(len(cards), 'cache')} ({names})"
        raise InputError(f"{selections.path}: {origin}, {count} {'were' if count > 1 else 'was'} given; {fix}")
    for card, cache in zip(cards, tracks.caches):
        for name, old, new in differences(card, {field: getattr(cache.card, field) for field in card}):
            raise InputError(f"{selections.path}: made of tracks with {name} {old}, {cache.path} has {new}; {fix}")


def check_same_tracks(selections: SelectionCache, tracks: TrackSource, video_id: str) -> None:
    """Raises InputError unless the caches hold the very tracks of the video that the selections were made of."""
    selected, info = selections.info(video_id), tracks.info(video_id)
    where, path = f"{selections.path}, video {video_id}", tracks.caches[0].path
    difference = frames_difference((selected.frame_names, selected.size), (info.frame_names, info.size))
    if difference is not None:
        raise InputError(f"{where}: made of other frames than {path} holds: {difference}; predict again")
    if not selected.tracks:
        if "tracks" in selections.card.extra:
            raise InputError(f"{where}: does not say of which tracks it was made, as older versions wrote it; predict again")
        return
    difference = expressions_difference(selected.expressions, info.expressions)
    if difference is not None:
        raise InputError(f"{where}: made of other sentences than {path} lists: {difference}; predict again into another --out")
    contents = tracks.contents(video_id)
    changed = [cache.path for cache, a, b in zip(tracks.caches_of[video_id], selected.tracks, contents) if a != b]
    if changed or len(contents) != len(selected.tracks):
        raise InputError(
            f"{where}: made of other tracks or labels than {(changed or [path])[0]} holds now: it was extracted or labelled again; "
            "predict again into another --out"
        )
