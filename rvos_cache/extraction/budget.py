"""The limit of the bytes that an extraction may write, for trackers that know their bytes before they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError, warn_once
from rvos_cache.extraction.work import TrackWork
from rvos_cache.trackers.planned import Size, VideoSize


def check_budget(work: TrackWork, videos: Iterable[tuple[Dataset, str]], budget: int, used: int = 0) -> int:
    """The bytes of the cache of `videos` (pairs of dataset and video id). Raises InputError if they will exceed `budget` bytes, of
    which other trackers need `used`, or cannot be known. Warns where they are an estimate.

    A video that cannot be opened counts as no bytes: extraction records it as failed.
    """
    planned = work.model.planned_bytes(_sizes(videos))
    if planned is None:
        raise InputError(
            f"tracker {work.tracker}: it does not know its bytes before it runs; rvos-cache plan --budget times a few videos"
        )
    planned.check(budget, used)
    if planned.note:
        warn_once(
            f"--budget: {planned.current} needs {planned.formatted()[planned.current]}, {planned.note}; rvos-cache plan --budget "
            "measures a few videos"
        )
    return planned.sizes[planned.value]


def _sizes(videos: Iterable[tuple[Dataset, str]]) -> Iterator[Size]:
    for dataset, video_id in videos:
        try:
            yield video_size(dataset, video_id)
        except InputError:
            continue


def video_size(dataset: Dataset, video_id: str) -> VideoSize:
    """The size and the sentences of a video. Raises InputError if it cannot be opened."""
    video = dataset.video(video_id)
    return VideoSize(video.size, len(video), [e.text for e in dataset.expressions(video_id)])
