"""The score of perfect labels: for each target object its best candidate by mean IoU over frames, OR-ed.

Not the maximum over subsets of tracks; an expression without target scores the empty answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.types import Overlap
from rvos_select.data.caches import TrackSource, candidates
from rvos_select.data.labels import mean_iou, oracle_tracks
from rvos_select.evaluation import IMAGE, PROTOCOLS
from rvos_select.evaluation.image import Row, Said, score_masks, table_of, task_of
from rvos_select.metrics.answers import VideoAnswers, answers, chosen_videos, dataset_of, listed_videos
from rvos_select.metrics.scores import Scores, score


def oracle(
    caches: Sequence[Path],
    dataset: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    videos: Sequence[str] = (),
    limit: int | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """J, F, J&F of the oracle, and "objects": {"<video>/<object>": its best track's mean IoU over annotated frames}.

    The candidates of an expression are respected; an object's best track is any of its video. The answers are the dataset's
    where `root`, or the hint in the card, leads to it, else those that the caches hold. Where that dataset is scored by frames,
    "image" holds the scores of `evaluate.image`, the oracle's mask being the one answer of each expression; the caches alone do
    not know the frames. Raises InputError for training-only caches and, unless `allow_missing`, for a video that the caches
    lack (else it scores 0 and is listed).
    """
    source = TrackSource(caches)
    for cache in source.caches:
        if cache.card.training_only:
            raise InputError(
                f"{cache.path}: its tracks were prompted with ground truth, for training only; give a cache of another tracker"
            )
    scores, objects, rows = Scores(), dict[str, float](), list[list[Row]]()
    known = dataset_of(source, dataset, root, split)
    framed = known if known is not None and PROTOCOLS.get(known.name) == IMAGE else None
    asked = chosen_videos(listed_videos(source, known), videos, limit, str(source.caches[0].path))
    for video in answers(asked, known, source if root is None else None, allow_missing):
        said: Said = {}
        if not isinstance(video, VideoAnswers):
            for key in video:
                scores.add(key, None, None)
        elif video.video_id not in source.caches_of:
            if not allow_missing:
                raise InputError(f"{source.missing_line(video.video_id)}, or give --allow-missing to score it 0")
            for expression in video.expressions:
                scores.add(expression.key, None, video.kind(expression))
            objects.update({f"{video.video_id}/{name}": 0.0 for name in video.truth.object_ids})
        else:
            quality = _quality(source, video)
            best = quality.max(axis=0) if len(quality) else np.zeros(quality.shape[1])
            objects.update({f"{video.video_id}/{name}": float(b) for name, b in zip(video.truth.object_ids, best)})
            said = _add(scores, source, video, quality)
        if framed is not None:
            rows.append(score_masks(task_of(video, framed, said=said)))
    out = {**scores.table(), "objects": objects}
    return out if framed is None else {**out, "image": table_of(rows, "all-queries", framed.name, framed.split)}


def _quality(source: TrackSource, video: VideoAnswers) -> NDArray[np.float64]:
    """Mean IoU (N, A) of each track with each of the video's objects, from the stored counts where they are the same."""
    info, truth = source.info(video.video_id), video.truth.masks
    if (info.frames, info.size) != (truth.shape[1], truth.size):
        raise InputError(
            f"{source.caches[0].path}, video {video.video_id}: holds {info.frames} frames of {info.size}, the ground truth has "
            f"{truth.shape[1]} of {truth.size}; extract the video again from this dataset"
        )
    if info.object_ids == video.truth.object_ids:
        overlap: Overlap = source.overlap(video.video_id)
    else:
        overlap = count_overlap(source.masks(video.video_id), video.truth)
    return mean_iou(overlap)


def _add(scores: Scores, source: TrackSource, video: VideoAnswers, quality: NDArray[np.float64]) -> Said:
    """Score the oracle's mask of each expression; returns these masks, each with score 1."""
    info, masks = source.info(video.video_id), source.masks(video.video_id)
    done: dict[tuple[tuple[str, ...], bytes], tuple[RleMasks, tuple[float, float]]] = {}
    said: Said = {}
    for expression in video.expressions:
        allowed = candidates(info, expression.expression_id)
        case = (expression.targets or (), allowed.tobytes())
        if case not in done:
            truth = video.union(expression)
            picked = oracle_tracks(quality, video.truth.indices(case[0]), allowed)
            mask = masks.union(np.flatnonzero(picked))
            done[case] = mask, score(mask, truth, video.truth.annotated)
        mask, value = done[case]
        scores.add(expression.key, value, video.kind(expression))
        said[expression.key] = (mask, np.ones(1, np.float32))
    return said
