"""The room that an extraction may take on disk, asked of trackers that know what they need before they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.extract.work import TrackWork
from rvos_cache.trackers.planned import KnowsBytes, PlannedBytes


def planned_bytes(work: TrackWork, videos: Iterable[tuple[Dataset, str]] | None = None) -> PlannedBytes | None:
    """What the cache of `videos`, each its split and id, will take; None for a tracker that does not know. Default: all.

    A video that cannot be opened takes no room: extraction will record it as failed.
    """
    if not isinstance(work.model, KnowsBytes):
        return None
    listed = ((work.source, video_id) for video_id in work.source.video_ids()) if videos is None else videos
    return work.model.planned_bytes(_sizes(listed))


def check_budget(work: TrackWork, videos: Iterable[tuple[Dataset, str]], budget: int) -> None:
    """Raises InputError when `videos` will take more than `budget` bytes, or the tracker does not know what they take."""
    planned = planned_bytes(work, videos)
    if planned is None:
        raise InputError(
            f"tracker {work.tracker}: it does not know its bytes before it runs; rvos-cache plan --budget times a few videos"
        )
    planned.check(budget)


def _sizes(videos: Iterable[tuple[Dataset, str]]) -> Iterator[tuple[tuple[int, int], int]]:
    for source, video_id in videos:
        try:
            video = source.video(video_id)
        except InputError:
            continue
        yield video.size, len(video)
