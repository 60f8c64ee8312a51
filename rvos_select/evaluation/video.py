"""Scores of expressions over whole videos, as MeViS and Ref-YouTube-VOS score them: J, F, J&F; N-acc and T-acc.

A missing prediction is an error that names it, never a dropped row. The frames of a video are scored one after the other, all
expressions in each: silhouettes and scores of equal targets and equal predictions are computed once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.mask_png import decode_mask_png
from rvos_cache.system.progress import tracked
from rvos_cache.types import Expression
from rvos_select.evaluation.against import Against, check_same_answers
from rvos_select.evaluation.ground_truth import (
    AnnotatedVideo,
    UnreadableVideo,
    annotated_videos,
    dataset_of,
    select_videos,
    videos_of,
)
from rvos_select.evaluation.kinds import kinds_of
from rvos_select.evaluation.pngs import check_folder, prediction_bytes
from rvos_select.evaluation.processes import in_order
from rvos_select.evaluation.scope import WHOLE, Scope
from rvos_select.evaluation.selected import SelectedTracks
from rvos_select.merging.hints import warn_if_empty
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, SelectionPolicy, resolve_policy
from rvos_select.merging.tracks_by_frame import by_frame, check_track_count
from rvos_select.metrics.metric import NO_FRAME, FrameMetrics
from rvos_select.metrics.scores import ExpressionScores
from rvos_select.metrics.silhouette import EMPTY, Silhouette
from rvos_select.metrics.slices import Facts, mean_share

LABEL = "video"
Union = tuple[int, tuple[int, ...]]
"""Masks whose OR is a prediction: the index of their RleMasks in `MergedMasks.masks`, and their indices in it."""


@dataclass(frozen=True)
class Row:
    """One expression's scores. items: by each metric, None where the prediction is missing; pixels: of the prediction, in the
    annotated frames."""

    key: str
    items: tuple[tuple[float, ...], ...] | None = None
    kind: str | None = None
    facts: Facts | None = None
    pixels: int = 0


@dataclass(frozen=True)
class ScoredExpression:
    """One expression of a task. targets: indices of its objects in the task's truth; words: count; cue: kind by its words."""

    key: str
    targets: tuple[int, ...]
    words: int
    kind: str | None
    cue: str | None


@dataclass(frozen=True)
class PngMasks:
    """Predictions as files, `<folder>/<video>/<expression>/<frame>.png`."""

    folder: Path
    allow_missing: bool

    def identity(self, task: Task, expression: ScoredExpression, t: int) -> bytes | None:
        """What two equal predictions of frame t share: the file's bytes. None: it is missing, or an InputError."""
        return prediction_bytes(self._path(task, expression, t), self.allow_missing)

    def silhouette(self, task: Task, expression: ScoredExpression, t: int, identity: Any) -> Silhouette:
        """The mask of frame t. Raises InputError for a file that is no mask of the frame's size."""
        return Silhouette.of_pixels(decode_mask_png(self._path(task, expression, t), identity, task.truth.size))

    def _path(self, task: Task, expression: ScoredExpression, t: int) -> Path:
        return self.folder / expression.key / f"{task.frame_names[t]}.png"


@dataclass(frozen=True)
class MergedMasks:
    """Predictions as unions of masks. unions: of T frames by the expression's key; no entry: the prediction is missing."""

    masks: tuple[RleMasks, ...] = ()
    unions: dict[str, tuple[Union, ...]] = field(default_factory=dict)

    def identity(self, task: Task, expression: ScoredExpression, t: int) -> Union | None:
        """What two equal predictions of frame t share; None: it is missing."""
        unions = self.unions.get(expression.key)
        return None if unions is None else unions[t]

    def silhouette(self, task: Task, expression: ScoredExpression, t: int, identity: Any) -> Silhouette:
        """The OR of the masks in frame t."""
        which, indices = identity
        return union(self.masks[which], indices, t)


@dataclass(frozen=True)
class Task:
    """One video to score.

    annotated: indices of the annotated frames; unreadable: keys of a video that cannot be read; also: names of further metrics.
    """

    frame_names: tuple[str, ...]
    annotated: tuple[int, ...]
    truth: RleMasks
    expressions: tuple[ScoredExpression, ...]
    predictions: PngMasks | MergedMasks
    unreadable: tuple[str, ...] = ()
    also: Sequence[str] = ()


def union(masks: RleMasks, indices: Sequence[int], t: int) -> Silhouette:
    """The OR of the masks `indices` in frame t; none: empty."""
    if not indices:
        return EMPTY
    runs = masks.bytes_at(indices[0], t)
    if len(indices) > 1:
        runs = bytes(coco.merge([masks.at(k, t) for k in indices], intersect=0)["counts"])
    return Silhouette.of_runs(runs, masks.size)


def score_video(task: Task) -> list[Row]:
    """The scores of every expression of a video. Raises InputError when no frame is annotated or a prediction is missing."""
    if task.unreadable:
        return [Row(key) for key in task.unreadable]
    if not task.annotated:
        raise InputError(NO_FRAME)
    metrics = FrameMetrics(Scope(also=task.also).video_metrics)
    numbers = np.zeros((len(task.expressions), len(task.annotated), metrics.width))
    missing = [False] * len(task.expressions)
    pixels = [0] * len(task.expressions)
    areas: dict[tuple[int, ...], list[int]] = {expression.targets: [] for expression in task.expressions}
    for i, t in enumerate(task.annotated):
        truths = {targets: union(task.truth, targets, t) for targets in areas}
        for targets, truth in truths.items():
            areas[targets].append(truth.area)
        silhouettes: dict[Any, Silhouette] = {}
        scored: dict[tuple[Any, tuple[int, ...]], tuple[float, ...]] = {}
        for e, expression in enumerate(task.expressions):
            identity = None if missing[e] else task.predictions.identity(task, expression, t)
            if identity is None:
                missing[e] = True
                continue
            if identity not in silhouettes:
                silhouettes[identity] = task.predictions.silhouette(task, expression, t, identity)
            pixels[e] += silhouettes[identity].area
            pair = (identity, expression.targets)
            if pair not in scored:
                scored[pair] = metrics.frame(silhouettes[identity], truths[expression.targets])
            numbers[e, i] = scored[pair]
    return [
        Row(
            expression.key,
            None if missing[e] else metrics.items(numbers[e], len(expression.targets)),
            expression.kind,
            _facts(expression, len(task.frame_names), areas[expression.targets], task.truth.size),
            pixels[e],
        )
        for e, expression in enumerate(task.expressions)
    ]


def _facts(expression: ScoredExpression, frames: int, areas: Sequence[int], size: tuple[int, int]) -> Facts:
    kind = expression.kind or expression.cue
    return Facts(expression.words, len(expression.targets), frames, mean_share(areas, size), kind)


def evaluate_pngs(
    dataset: str,
    root: Path,
    split: str,
    predictions: Path,
    scope: Scope = WHOLE,
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png`; any value but 0 is foreground.

    Every annotated frame of the expressions in `scope` needs its PNG. Raises InputError that names a missing one.
    """
    predictions = check_folder(Path(predictions))
    data = open_dataset(dataset, root, split)
    video_ids = select_videos(data.video_ids(), scope.videos, scope.limit, f"{data.root} {data.split}")
    cue = kinds_of(scope.texts)
    against = Against.of(data)
    videos = against.watch(annotated_videos(video_ids, data, None, scope.allow_missing))
    tasks = (_task(video, cue, PngMasks(predictions, scope.allow_missing), scope.also) for video in videos)
    hint = f"{predictions}: every mask is empty in the annotated frames; merge again with --top1 or a lower --threshold"
    rows = tracked(in_order(score_video, tasks, scope.processes), "evaluate", len(video_ids))
    return _scores(rows, dataset, split, against, scope, hint)


def evaluate_selections(
    selections: Path,
    caches: Sequence[Path],
    dataset: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    policy: PolicyOptions = DEFAULT_POLICY,
    scope: Scope = WHOLE,
) -> dict[str, Any]:
    """Scores of selections, merged in memory.

    The ground truth is the dataset's, at `root` or at the root of the card, which must be what the caches were extracted from;
    where it is not there, and for videos that the dataset lacks by now, that of the caches. A video that failed in extraction and
    whose expressions are not known counts as one expression, "<video>". Raises like `evaluate_pngs`.
    """
    selected = SelectedTracks.open(selections, list(caches))
    source = selected.source
    data = dataset_of(source, dataset, root, split)
    video_ids = select_videos(videos_of(source, data), scope.videos, scope.limit, str(source.caches[0].path))
    resolved, cue, against = resolve_policy(selected.cache, policy), kinds_of(scope.texts), Against.of(data)
    own = source if root is None else None

    def tasks() -> Iterator[Task]:
        for video in against.watch(annotated_videos(video_ids, data, own, scope.allow_missing)):
            masks = MergedMasks()
            if isinstance(video, AnnotatedVideo):
                if data is not None:
                    check_same_answers(source, data, video)
                masks = _merged(video, selected, resolved, scope.allow_missing)
            yield _task(video, cue, masks, scope.also)

    datasets, splits = (", ".join(sorted({getattr(card, name) for card in source.cards})) for name in ("dataset", "split"))
    rows = tracked(in_order(score_video, tasks(), scope.processes), "evaluate", len(video_ids))
    scores = _scores(rows, datasets, splits, against, scope)
    warn_if_empty(selected.cache, resolved, video_ids)
    return scores


def _merged(video: AnnotatedVideo, selected: SelectedTracks, policy: SelectionPolicy, allow_missing: bool) -> MergedMasks:
    """The selected masks of a video; masks of tracks that no expression selects are not read."""
    video_id, selections = video.video_id, selected.of(video, allow_missing)
    if not selections:
        return MergedMasks()
    info = selected.source.info(video_id)
    for selection in selections:
        check_track_count(selection, info.tracks)
    of_tracks = {s.expression_id: by_frame(policy(s), s.parts, info.frames) for s in selections if s.masks is None}
    tracks = sorted({track for frames in of_tracks.values() for own in set(frames) for track in own})
    position = {track: i for i, track in enumerate(tracks)}
    masks, unions = [selected.source.masks(video_id, tracks)], {}
    for selection in selections:
        key = f"{video_id}/{selection.expression_id}"
        if selection.masks is None:
            frames = of_tracks[selection.expression_id]
            # One object for equal frames: tasks are sent to other processes.
            of_frame = {own: (0, tuple(position[track] for track in own)) for own in set(frames)}
            unions[key] = tuple(of_frame[own] for own in frames)
        else:
            own_masks = selection.masks.select(policy(selection).tolist())
            unions[key] = ((len(masks), tuple(range(own_masks.shape[0]))),) * info.frames
            masks.append(own_masks)
    return MergedMasks(tuple(masks), unions)


def _task(
    video: AnnotatedVideo | UnreadableVideo,
    cue: Callable[[Expression], str | None],
    predictions: PngMasks | MergedMasks,
    also: Sequence[str],
) -> Task:
    if isinstance(video, UnreadableVideo):
        return Task((), (), RleMasks.empty(0, 0, (1, 1)), (), predictions, video.keys)
    expressions = tuple(
        ScoredExpression(e.key, tuple(sorted(video.targets(e))), len(e.text.split()), video.kind(e), cue(e))
        for e in video.expressions
    )
    annotated = tuple(np.flatnonzero(video.truth.annotated).tolist())
    return Task(video.frame_names, annotated, video.truth.masks, expressions, predictions, also=also)


def _scores(
    videos: Iterable[list[Row]], dataset: str, split: str, against: Against, scope: Scope, hint: str | None = None
) -> dict[str, Any]:
    """The scores of all rows. hint: what to warn of if no prediction has a pixel."""
    scores, predictions, pixels = ExpressionScores(scope.video_metrics), 0, 0
    for rows in videos:
        for row in rows:
            scores.add(row.key, row.items, row.kind, row.facts)
            predictions, pixels = predictions + (row.items is not None), pixels + row.pixels
    if hint and predictions and not pixels:
        warnings.warn(hint, stacklevel=3)
    return {"protocol": LABEL, "dataset": dataset, "split": split, **scores.table(), **against.to_json()}
