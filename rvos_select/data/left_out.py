"""The videos of a split that are not read: one of its caches lacks them, they failed in extraction, or were not extracted yet."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from rvos_cache.extraction import failed_videos, find_dataset
from rvos_cache.system.counts import counted
from rvos_select.data.caches import TrackSource


def missing_videos(role: str, sources: Sequence[TrackSource], warn: bool) -> dict[str, str]:
    """Video -> why it is left out. role: for messages; warn: one line for each kind of reason.

    Videos that were not extracted are known where the dataset is still at the root that the card names.
    """
    if warn:
        warn_of_incomplete(role, sources)
    incomplete = {video_id: reason for source in sources for video_id, reason in source.incomplete.items()}
    return {**unextracted_videos(role, sources, warn), **incomplete}


def warn_of_incomplete(role: str, sources: Sequence[TrackSource]) -> None:
    """Warn of the videos that one of the joined caches lacks, a line for each source that has any."""
    for source in sources:
        if source.incomplete:
            warnings.warn(f"{role}: {source.skipped_line()}", stacklevel=3)


def unextracted_videos(role: str, sources: Sequence[TrackSource], warn: bool) -> dict[str, str]:
    """Video -> why it is in no cache: it failed in extraction, or was not extracted yet. Arguments as `missing_videos`."""
    failed, unread = dict[str, str](), dict[str, str]()
    for source in sources:
        for cache in source.caches:
            for video_id, error in failed_videos(cache).items():
                if video_id not in source.incomplete:
                    failed[video_id] = f"{cache.path}, video {video_id}: {error}"
    if failed and warn:
        first, fix = failed[min(failed)], "fix it and run the extraction again, or go on without them"
        warnings.warn(
            f"{role}: {counted(len(failed), 'video')} failed in extraction, left out; first {first}; {fix}", stacklevel=3
        )
    for source in sources:
        unread |= _not_extracted(role, source, failed, warn)
    return {**unread, **failed}


def _not_extracted(role: str, source: TrackSource, failed: Mapping[str, str], warn: bool) -> dict[str, str]:
    """Video of a split that no cache of `source` has, though it did not fail -> where it is missing."""
    out = dict[str, str]()
    first_of = {(cache.card.dataset, cache.card.split): cache for cache in reversed(source.caches)}
    for cache in first_of.values():
        dataset = find_dataset(cache.card)
        if dataset is None:
            continue
        listed = dataset.video_ids()
        absent = [v for v in listed if v not in source.caches_of and v not in source.incomplete and v not in failed]
        # A cache without any video is an error of its own.
        if absent and warn and len(absent) < len(listed):
            warnings.warn(
                f"{role}: {len(absent)} of the {len(listed)} videos of {dataset.name} {dataset.split} are not in {cache.path}, first "
                f"{absent[0]}: its extraction is not complete; run the same rvos-cache extract (make extract) again, or go on "
                "without them",
                stacklevel=4,
            )
        out |= {video_id: f"{cache.path}, video {video_id}: not extracted" for video_id in absent}
    return out
