"""A cache and its dataset: the expressions that bind it, and which of its failures still count."""

from __future__ import annotations

from pathlib import Path

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.store import Cache, Card, TextCache, TrackCache, canonical, digest, open_backend, open_cache
from rvos_cache.types import Expression


def expressions_digest(dataset: Dataset) -> str:
    """Digest of the whole split's expressions: ids, texts and targets in file order."""
    listed = [
        [e.video_id, e.expression_id, e.text, e.targets]
        for video_id in dataset.video_ids()
        for e in _expressions(dataset, video_id)
    ]
    return digest(canonical(listed))


def bound_digest(dataset: Dataset, out: Path) -> str:
    """The digest of `expressions_digest`, or that of the cache `out` where all it holds is said the same as now.

    So a video whose sentences were mended, or one that is new, joins the cache that it was missing from.
    Raises InputError for a damaged cache.
    """
    now = expressions_digest(dataset)
    if not open_backend(out).has_card():
        return now
    cache = open_cache(out)
    held = cache.card.expressions_digest
    if held in (None, now) or not isinstance(cache, (TextCache, TrackCache)):
        return now
    listed = set(dataset.video_ids())
    for video_id in cache.video_ids():
        stored = cache.expressions(video_id) if isinstance(cache, TextCache) else cache.info(video_id).expressions
        if video_id not in listed or stored != _expressions(dataset, video_id):
            return now
    return held


def at_hand(card: Card) -> Dataset | None:
    """The dataset that a cache was made of, where the hint in its card still leads to it."""
    try:
        return open_dataset(card.dataset, Path(card.root), card.split) if card.root else None
    except InputError:
        return None


def failed_videos(cache: Cache, dataset: Dataset | None = None) -> dict[str, str]:
    """Videos of the split that failed and are still not there, with the error. dataset: default, the one at hand.

    A record of a video that has left the split since is none of them.
    """
    failed = cache.failures()
    if not failed:
        return {}
    known = dataset or at_hand(cache.card)
    listed = failed.keys() if known is None else set(known.video_ids())
    return {video_id: error for video_id, error in failed.items() if video_id in listed}


def _expressions(dataset: Dataset, video_id: str) -> tuple[Expression, ...]:
    # A video whose expressions are broken fails when it is extracted; the digest of the rest still binds.
    try:
        return dataset.expressions(video_id)
    except InputError:
        return ()
