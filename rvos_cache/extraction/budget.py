"""The room that an extraction may take on disk, asked of trackers that know what they need before they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction.work import TrackWork
from rvos_cache.trackers.planned import KnowsBytes, PlannedBytes, Size


def planned_bytes(work: TrackWork, videos: Iterable[Size]) -> PlannedBytes | None:
    """What a cache of `videos` will take; None for a tracker that does not know."""
    return work.model.planned_bytes(videos) if isinstance(work.model, KnowsBytes) else None


def check_budget(work: TrackWork, videos: Iterable[tuple[Dataset, str]], budget: int) -> None:
    """Raises InputError when `videos`, each its split and id, will take more than `budget` bytes, or the tracker does not know.

    A video that cannot be opened takes no room: extraction will record it as failed.
    """
    planned = planned_bytes(work, _sizes(videos))
    if planned is None:
        raise InputError(
            f"tracker {work.tracker}: it does not know its bytes before it runs; rvos-cache plan --budget times a few videos"
        )
    planned.check(budget)


def _sizes(videos: Iterable[tuple[Dataset, str]]) -> Iterator[Size]:
    for source, video_id in videos:
        try:
            video = source.video(video_id)
        except InputError:
            continue
        yield video.size, len(video)
