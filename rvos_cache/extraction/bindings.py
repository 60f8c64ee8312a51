"""What connects a cache with its dataset: the digest of the expressions, and the failures that still count."""

from __future__ import annotations

from pathlib import Path

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.store import Cache, Card, TextCache, TrackCache, canonical, digest, open_backend, open_cache
from rvos_cache.types import Expression


def expressions_digest(dataset: Dataset) -> str:
    """Digest of the expressions of the whole split: ids, texts and targets in file order."""
    rows = [
        [e.video_id, e.expression_id, e.text, e.targets]
        for video_id in dataset.video_ids()
        for e in _expressions(dataset, video_id)
    ]
    return digest(canonical(rows))


def bound_digest(dataset: Dataset, out: Path | str) -> str:
    """The digest for the card of the cache `out`: that of its card if all stored expressions are unchanged, else the current one.

    So a video whose expressions were repaired, or a new one, can be added to a cache that lacked it.
    Raises InputError for a damaged cache.
    """
    current = expressions_digest(dataset)
    if not open_backend(out).has_card():
        return current
    cache = open_cache(out)
    stored = cache.card.expressions_digest
    if stored in (None, current) or not isinstance(cache, (TextCache, TrackCache)):
        return current
    listed = set(dataset.video_ids())
    for video_id in cache.video_ids():
        expressions = cache.expressions(video_id) if isinstance(cache, TextCache) else cache.info(video_id).expressions
        if video_id not in listed or expressions != _expressions(dataset, video_id):
            return current
    return stored


def find_dataset(card: Card) -> Dataset | None:
    """The dataset that a cache was made from, or None if it is no longer at the root that the card names."""
    try:
        return open_dataset(card.dataset, Path(card.root), card.split) if card.root else None
    except InputError:
        return None


def failed_videos(cache: Cache, dataset: Dataset | None = None) -> dict[str, str]:
    """Videos of the split that failed and are not in the cache, with their errors.

    dataset: by default that of `find_dataset`. Failures of videos that are no longer in the split do not count.
    """
    failures = cache.failures()
    if not failures:
        return {}
    source = dataset or find_dataset(cache.card)
    listed = failures.keys() if source is None else set(source.video_ids())
    return {video_id: error for video_id, error in failures.items() if video_id in listed}


def _expressions(dataset: Dataset, video_id: str) -> tuple[Expression, ...]:
    # A video whose expressions are damaged fails when it is extracted; the digest covers the others.
    try:
        return dataset.expressions(video_id)
    except InputError:
        return ()
