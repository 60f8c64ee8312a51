"""What connects a cache with its dataset: digests, what has changed since the extraction, and the failures that still count."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.identity import expressions_difference, frames_difference, frames_digest, truth_difference
from rvos_cache.store import Cache, Card, TextCache, TrackCache, canonical, digest, open_backend, open_cache, read_card
from rvos_cache.system.progress import tracked
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


def video_difference(cache: TrackCache, dataset: Dataset, video_id: str, *, frames: bool = True) -> str | None:
    """How a video of the dataset differs from the one that `cache` was extracted from, in words. None: it does not.

    Compared are frames, sentences, targets and masks; a sentence or an object that only one side has is no difference.
    frames: compare the bytes of the frames too, not their names and size alone. Raises InputError if the video cannot be read.
    """
    info, video = cache.info(video_id), dataset.video(video_id)
    difference = frames_difference((info.frame_names, info.size), (video.frame_names, video.size))
    difference = difference or expressions_difference(info.expressions, dataset.expressions(video_id))
    if difference is None and info.object_ids is not None and dataset.has_ground_truth:
        truth = dataset.ground_truth(video_id)
        difference = None if truth is None else truth_difference(cache.ground_truth(video_id), truth)
    if difference is None and frames and info.frames_digest not in (None, frames_digest(video)):
        difference = "its frames are other pictures"
    return difference


def check_unchanged(out: Path | str, card: Card, dataset: Dataset, video_ids: Iterable[str]) -> list[str]:
    """Compare the videos that the tracks cache `out` holds already with the dataset, before others are added.

    Raises InputError, naming the difference, for a video that has changed in the dataset since it was extracted. Warns of videos
    that cannot be compared because they can no longer be read. Returns the videos of `video_ids` that `out` holds; none where
    its card is not `card`, which is an error of its own when `out` is opened for writing.
    """
    if not open_backend(out).has_card() or read_card(out).differences(card):
        return []
    cache = TrackCache(out)
    published = set(cache.video_ids()).intersection(video_ids)
    changed: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    for video_id in tracked(sorted(published), f"compare {dataset.split}"):
        try:
            difference = video_difference(cache, dataset, video_id)
        except InputError as error:
            unreadable[video_id] = str(error)
            continue
        if difference is not None:
            changed[video_id] = difference
    if unreadable:
        first = next(iter(unreadable.values()))
        warnings.warn(
            f"{cache.path}: {len(unreadable)} of its videos cannot be compared with {dataset.root}, first: {first}", stacklevel=3
        )
    if changed:
        video_id, difference = next(iter(changed.items()))
        fix = cache.folder(video_id).how_to_fix
        raise InputError(
            f"{cache.path}: {len(changed)} of its videos changed in {dataset.root} since they were extracted, first {video_id}: "
            f"{difference}; {fix}, or make another cache (rvos-cache relabel, where frames are the same)"
        )
    return sorted(published)


def changes(path: Path | str) -> Iterator[str]:
    """Every video of a tracks or text cache that has changed in its dataset since it was extracted, one line each.

    None where the dataset is no longer at the root of the card, and of selections.
    """
    cache = open_cache(path)
    dataset = find_dataset(cache.card)
    if dataset is None or not isinstance(cache, (TrackCache, TextCache)):
        return
    listed = set(dataset.video_ids())
    for video_id in tracked(cache.video_ids(), "compare"):
        try:
            if video_id not in listed:
                difference: str | None = "it is no longer in the split"
            elif isinstance(cache, TrackCache):
                difference = video_difference(cache, dataset, video_id)
            else:
                difference = expressions_difference(cache.expressions(video_id), dataset.expressions(video_id))
        except InputError as error:
            difference = f"it cannot be compared: {error}"
        if difference is not None:
            yield f"{cache.path}, video {video_id}: changed in {dataset.root} since it was extracted: {difference}"


def check_same_texts(out: Path | str, dataset: Dataset) -> None:
    """Raises InputError, naming the difference, if the text cache `out` has words of sentences that have changed in the dataset."""
    if not open_backend(out).has_card():
        return
    cache = open_cache(out)
    if not isinstance(cache, TextCache):
        return
    listed = set(dataset.video_ids())
    for video_id in (v for v in cache.video_ids() if v in listed):
        # A video whose expressions are damaged fails when its words are encoded.
        difference = expressions_difference(cache.expressions(video_id), _expressions(dataset, video_id))
        if difference is not None:
            raise InputError(
                f"{cache.path}, video {video_id}: its words are of sentences that have changed in {dataset.root}: {difference}; "
                "remove this cache and run the same command again, or encode into another path"
            )


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
