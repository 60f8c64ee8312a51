"""What a selections file says of a video that is scored, checked against the tracks and the answers."""

from __future__ import annotations

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.store import SelectionCache
from rvos_cache.types import Selection
from rvos_select.data.caches import TrackSource
from rvos_select.merging.merge import check_pair
from rvos_select.metrics.answers import VideoAnswers


def selections_of(
    video: VideoAnswers, source: TrackSource, said: SelectionCache, have: set[str], allow_missing: bool
) -> list[Selection]:
    """The selections of the video's expressions, in their order. have: the videos of `said`.

    Raises InputError for a video or, without `allow_missing`, an expression that is not there.
    """
    video_id = video.video_id
    if video_id not in source.caches_of and not allow_missing:
        raise InputError(f"{source.missing_line(video_id)}, or give --allow-missing to score it 0")
    found: dict[str, Selection] = {}
    if video_id in have and video_id in source.caches_of:
        check_pair(said, source, video_id)
        found = {s.expression_id: s for s in said.selections(video_id)}
    for expression in video.expressions:
        if expression.expression_id not in found and not allow_missing:
            remedy = "extract and predict its video, or give --allow-missing"
            raise InputError(f"{said.path}: no selection of expression {expression.key}; {remedy}")
    return [found[e.expression_id] for e in video.expressions if e.expression_id in found]


def check_frames(video: VideoAnswers, masks: RleMasks, key: str) -> None:
    """Raises InputError unless the masks of expression `key` have the frames and the size of the answers."""
    truth = video.truth.masks
    if (masks.shape[1], masks.size) != (truth.shape[1], truth.size):
        raise InputError(
            f"expression {key}: predicted {masks.shape[1]} frames of {masks.size}, the ground truth has "
            f"{truth.shape[1]} of {truth.size}; extract the video again from this dataset"
        )
