"""The scores of perfect labels: for each target object its best candidate by mean IoU over frames, OR-ed.

Not the maximum over subsets of tracks; an expression without target gets the empty mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.overlap import count_overlap
from rvos_cache.system.progress import tracked
from rvos_cache.types import Overlap
from rvos_select.data.caches import TrackSource, candidates
from rvos_select.data.labels import mean_iou, oracle_tracks
from rvos_select.evaluation.against import Against, check_same_answers
from rvos_select.evaluation.ground_truth import (
    AnnotatedVideo,
    UnreadableVideo,
    annotated_videos,
    dataset_of,
    select_videos,
    videos_of,
)
from rvos_select.evaluation.image import Candidates, Row, score_masks, scores_of, task_of
from rvos_select.evaluation.protocols import protocol_of
from rvos_select.metrics.metric import FrameMetrics
from rvos_select.metrics.scores import ExpressionScores
from rvos_select.metrics.table import METRICS
from rvos_select.paths import PathLike, Paths


def oracle(
    caches: Paths,
    dataset: str | None = None,
    root: PathLike | None = None,
    split: str | None = None,
    videos: Sequence[str] = (),
    limit: int | None = None,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """J, F, J&F of the oracle; "objects": {"<video>/<object>": its best track's mean IoU over annotated frames}; "best_iou":
    {"<video>/<expression>": the largest mean IoU of a candidate with an object of the expression, None where it names none}.

    An expression's best tracks are among its candidates; an object's best track is any of its video. The ground truth is the
    dataset's, at `root` or at the root of the card, else that of the caches. For a dataset that is scored by single frames,
    "image" has the scores of `evaluation.image`, with the oracle's mask as the only candidate of each expression; caches without
    their dataset do not know the frames. Raises InputError for training-only caches, for caches without
    tracks and, unless `allow_missing`, for a video that the caches lack (else it scores 0 and is listed).
    """
    source = TrackSource(caches)
    for cache in source.caches:
        if cache.card.training_only:
            raise InputError(
                f"{cache.path}: its tracks were prompted with ground truth, for training only; give a cache of another tracker"
            )
    if not any(cache.card.channels for cache in source.caches):
        cache = source.caches[0]
        raise InputError(f"{cache.path}: tracker {cache.card.producer} makes no tracks; give a cache of a tracker that does")
    root = None if root is None else Path(root)
    data = dataset_of(source, dataset, root, split)
    video_ids = select_videos(videos_of(source, data), videos, limit, str(source.caches[0].path))
    table = _Oracle(source, data if data is not None and protocol_of(data.name).name == "image" else None)
    against = Against.of(data)
    annotated = against.watch(annotated_videos(video_ids, data, source if root is None else None, allow_missing))
    for video in tracked(annotated, "oracle", len(video_ids)):
        if isinstance(video, AnnotatedVideo) and data is not None:
            check_same_answers(source, data, video)
        if isinstance(video, AnnotatedVideo) and video.video_id not in source.caches_of and not allow_missing:
            raise InputError(f"{source.missing_line(video.video_id)}, or give --allow-missing to score it 0")
        table.add(video)
    of_split = (
        {"dataset": source.card.dataset, "split": source.card.split}
        if data is None
        else {"dataset": data.name, "split": data.split}
    )
    return of_split | table.scores() | against.to_json()


class _Oracle:
    """Scores of the oracle, filled in video by video. images: the dataset, where it is scored by single frames."""

    def __init__(self, source: TrackSource, images: Dataset | None) -> None:
        self.source, self.images = source, images
        self.metrics = FrameMetrics(METRICS["video"])
        self.expressions = ExpressionScores(METRICS["video"])
        self.objects: dict[str, float] = {}
        self.best_iou: dict[str, float | None] = {}
        self.rows: list[list[Row]] = []

    def add(self, video: AnnotatedVideo | UnreadableVideo) -> None:
        """Score a video; one that cannot be read or that the caches lack scores 0."""
        masks: Candidates = {}
        if isinstance(video, UnreadableVideo):
            for key in video.keys:
                self.expressions.add(key, None)
        elif video.video_id not in self.source.caches_of:
            for expression in video.expressions:
                self.expressions.add(expression.key, None, video.kind(expression))
                self.best_iou[expression.key] = 0.0 if expression.targets else None
            self.objects.update({f"{video.video_id}/{name}": 0.0 for name in video.truth.object_ids})
        else:
            quality = _quality(self.source, video)
            best = quality.max(axis=0) if len(quality) else np.zeros(quality.shape[1])
            self.objects.update({f"{video.video_id}/{name}": float(b) for name, b in zip(video.truth.object_ids, best)})
            masks = self._add_expressions(video, quality)
        if self.images is not None:
            self.rows.append(score_masks(task_of(video, self.images, candidates=masks)))

    def _add_expressions(self, video: AnnotatedVideo, quality: NDArray[np.float64]) -> Candidates:
        """Score the oracle's mask of each expression; returns these masks, each with score 1."""
        info, masks = self.source.info(video.video_id), self.source.masks(video.video_id)
        scored: dict[tuple[tuple[str, ...], bytes], tuple[RleMasks, tuple[tuple[float, ...], ...]]] = {}
        predicted: Candidates = {}
        for expression in video.expressions:
            allowed = candidates(info, expression.expression_id)
            case = (expression.targets or (), allowed.tobytes())
            if case[0]:
                own = quality[allowed][:, video.truth.indices(case[0])]
                self.best_iou[expression.key] = float(own.max(initial=0.0))
            else:
                self.best_iou[expression.key] = None
            if case not in scored:
                truth = video.union(expression)
                tracks = oracle_tracks(quality, video.truth.indices(case[0]), allowed)
                mask = masks.union(np.flatnonzero(tracks))
                # Without the number of targets: N-acc and T-acc of labels that know the targets say nothing.
                scored[case] = mask, self.metrics.score(mask, truth, video.truth.annotated, targets=None)
            mask, items = scored[case]
            self.expressions.add(expression.key, items, video.kind(expression))
            predicted[expression.key] = (mask, np.ones(1, np.float32))
        return predicted

    def scores(self) -> dict[str, Any]:
        """As JSON has them. Raises InputError when there is no expression."""
        scores = {**self.expressions.table(), "objects": self.objects, "best_iou": self.best_iou}
        if self.images is not None:
            scores["image"] = scores_of(self.rows, "all-queries", self.images.name, self.images.split)
        return scores


def _quality(source: TrackSource, video: AnnotatedVideo) -> NDArray[np.float64]:
    """Mean IoU (N, A) of each track with each of the video's objects, from the stored counts where the objects are the same."""
    info = source.info(video.video_id)
    if info.object_ids == video.truth.object_ids:
        overlap: Overlap = source.overlap(video.video_id)
    else:
        overlap = count_overlap(source.masks(video.video_id), video.truth)
    return mean_iou(overlap)
