"""Scores of single frames, as A2D-Sentences, JHMDB-Sentences and RefCOCO are scored: mAP, overall IoU, mean IoU and P@K.

The dataset lists the frames, `samples(video_id)`; where it has no such list, every expression is scored in every annotated
frame. The candidate masks of a selector in such a frame, empty ones too, are its detections with their scores; the mask with the
highest score is its prediction. See `metrics.image_level`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.datasets.samples import Sample
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.mask_png import decode_mask_png
from rvos_cache.system.progress import tracked
from rvos_cache.types import Expression
from rvos_select.evaluation.against import Against, check_same_answers
from rvos_select.evaluation.ground_truth import AnnotatedVideo, UnreadableVideo, annotated_videos, dataset_of, select_videos
from rvos_select.evaluation.kinds import kinds_of
from rvos_select.evaluation.pngs import check_folder, prediction_bytes
from rvos_select.evaluation.processes import in_order
from rvos_select.evaluation.scope import WHOLE, Scope
from rvos_select.evaluation.selected import SelectedTracks
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions
from rvos_select.merging.tracks_by_frame import masks_of_scores
from rvos_select.metrics.image_level import Detections, ImageScores, MapMode
from rvos_select.metrics.slices import Facts

LABEL = "image"
Candidates = dict[str, tuple[RleMasks, NDArray[np.float32]]]
"""Key of an expression -> its masks (Q, T) and their scores (Q,); no entry: the prediction is missing."""


@dataclass(frozen=True)
class Task:
    """One video to score. samples: each with its expression's key; truths: key -> its mask (1, T), None: it cannot be read.

    facts: key -> what is known of the expression, without `share`; candidates: None where PNGs are scored.
    """

    samples: tuple[tuple[str, Sample], ...]
    frame_names: tuple[str, ...] = ()
    truths: dict[str, RleMasks] | None = None
    facts: dict[str, Facts] = field(default_factory=dict)
    candidates: Candidates | None = None


@dataclass(frozen=True)
class Row:
    """One sample. detections: None where the prediction is missing; truth: pixels of the true mask."""

    image_id: str
    key: str
    detections: Detections | None
    truth: int = 0
    facts: Facts | None = None


def score_pngs(folder: Path, allow_missing: bool, task: Task) -> list[Row]:
    """The samples of a video from PNGs: one mask with score 1 each. Raises InputError."""

    def detect(key: str, sample: Sample, truth: RleMasks) -> Detections | None:
        path = folder / key / f"{task.frame_names[sample.t]}.png"
        raw = prediction_bytes(path, allow_missing)
        if raw is None:
            return None
        mask, true = decode_mask_png(path, raw, truth.size) > 0, truth.decode(0, sample.t)
        inter, area = (np.array([np.count_nonzero(m)]) for m in (mask & true, mask))
        return Detections(np.ones(1), inter, area, int(np.count_nonzero(true)))

    return _rows(task, detect)


def score_masks(task: Task) -> list[Row]:
    """The samples of a video from the candidate masks of its selections."""

    def detect(key: str, sample: Sample, truth: RleMasks) -> Detections | None:
        if task.candidates is None or key not in task.candidates:
            return None
        masks, scores = task.candidates[key]
        return Detections.count(masks, scores, truth, sample.t)

    return _rows(task, detect)


def _rows(task: Task, detect: Callable[[str, Sample, RleMasks], Detections | None]) -> list[Row]:
    if task.truths is None:
        return [Row(sample.image_id, key, None) for key, sample in task.samples]
    rows = []
    for key, sample in task.samples:
        truth = task.truths[key]
        area = int(truth.frames(sample.t, sample.t + 1).area()[0, 0])
        share = area / (truth.size[0] * truth.size[1]) if area else None
        rows.append(Row(sample.image_id, key, detect(key, sample, truth), area, replace(task.facts[key], share=share)))
    return rows


def evaluate_pngs(
    dataset: str,
    root: Path,
    split: str,
    predictions: Path,
    scope: Scope = WHOLE,
    map_mode: MapMode = "all-queries",
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png` in the frames that the benchmark scores.

    Every sample in `scope` needs its PNG. Raises InputError that names a missing one.
    """
    folder = check_folder(Path(predictions))
    data = open_dataset(dataset, root, split)
    video_ids = select_videos(data.video_ids(), scope.videos, scope.limit, f"{data.root} {data.split}")
    kind = kinds_of(scope.texts)
    against = Against.of(data)
    videos = against.watch(annotated_videos(video_ids, data, None, scope.allow_missing))
    tasks = (task_of(video, data, kind) for video in videos)
    rows = in_order(partial(score_pngs, folder, scope.allow_missing), tasks, scope.processes)
    rows = tracked(rows, "evaluate", len(video_ids))
    return scores_of(rows, map_mode, dataset, split) | against.to_json()


def evaluate_selections(
    selections: Path,
    caches: Sequence[Path],
    dataset: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    policy: PolicyOptions = DEFAULT_POLICY,
    scope: Scope = WHOLE,
    map_mode: MapMode = "all-queries",
) -> dict[str, Any]:
    """Scores of the candidates' masks with the selector's scores; nothing is merged, so any `policy` is an error.

    The list of scored frames is the dataset's, so it must be at `root` or at the root of the card. Raises like `evaluate_pngs`.
    """
    if policy != DEFAULT_POLICY:
        names = "--threshold, --top1 and --empty"
        raise InputError(f"{selections}: every candidate counts with its score; leave {names} out, see --map-mode")
    selected = SelectedTracks.open(selections, list(caches))
    data = dataset_of(selected.source, dataset, root, split)
    location = str(selected.source.caches[0].path)
    if data is None:
        raise InputError(f"{location}: the dataset, which lists the scored frames, is not at the root of the card; give --root")
    video_ids = select_videos(data.video_ids(), scope.videos, scope.limit, location)
    kind, own, against = kinds_of(scope.texts), selected.source if root is None else None, Against.of(data)

    def tasks() -> Iterator[Task]:
        for video in against.watch(annotated_videos(video_ids, data, own, scope.allow_missing)):
            candidates = None
            if isinstance(video, AnnotatedVideo):
                check_same_answers(selected.source, data, video)
                candidates = _candidates(video, selected, scope.allow_missing)
            yield task_of(video, data, kind, candidates)

    rows = tracked(in_order(score_masks, tasks(), scope.processes), "evaluate", len(video_ids))
    return scores_of(rows, map_mode, data.name, data.split) | against.to_json()


def _candidates(video: AnnotatedVideo, selected: SelectedTracks, allow_missing: bool) -> Candidates:
    """The candidates' masks and scores."""
    selections, truth = selected.of(video, allow_missing), video.truth.masks
    tracks = selected.source.masks(video.video_id) if selections else RleMasks.empty(0, *truth.shape[1:], truth.size)
    candidates = {}
    for selection in selections:
        key, indices = f"{video.video_id}/{selection.expression_id}", np.flatnonzero(selection.candidates)
        candidates[key] = (masks_of_scores(selection, tracks).select(indices.tolist()), selection.scores[indices])
    return candidates


def task_of(
    video: AnnotatedVideo | UnreadableVideo,
    data: Dataset,
    kind: Callable[[Expression], str | None] = lambda _: None,
    candidates: Candidates | None = None,
) -> Task:
    """The task of a video. Raises InputError."""
    if isinstance(video, AnnotatedVideo):
        samples, frames = _samples(data, video), len(video.frame_names)
        expressions = {e.key: e for e in video.expressions}
        truths = {key: video.union(expressions[key]) for key in dict.fromkeys(key for key, _ in samples)}
        facts = {k: Facts(len(e.text.split()), len(e.targets or ()), frames, None, kind(e)) for k, e in expressions.items()}
        return Task(samples, video.frame_names, truths, facts, candidates)
    try:
        return Task(_samples(data, video))
    except InputError:
        # The list of its frames is damaged: each expression counts as one sample.
        return Task(_one_each(video.keys))


def _samples(data: Any, video: AnnotatedVideo | UnreadableVideo) -> tuple[tuple[str, Sample], ...]:
    """Expression and frame of each sample of a video. Raises InputError."""
    samples = data.samples(video.video_id)
    if samples is not None:
        return tuple((f"{s.video_id}/{s.expression_id}", s) for s in samples)
    if isinstance(video, UnreadableVideo):
        return _one_each(video.keys)
    frames = np.flatnonzero(video.truth.annotated).tolist()
    return tuple(
        (e.key, Sample(e.video_id, e.expression_id, t, f"{e.key}/{video.frame_names[t]}"))
        for e in video.expressions
        for t in frames
    )


def _one_each(keys: Sequence[str]) -> tuple[tuple[str, Sample], ...]:
    """One sample for each expression, in frame 0."""
    return tuple((key, Sample(key.partition("/")[0], key.partition("/")[2], 0, key)) for key in keys)


def scores_of(videos: Iterable[list[Row]], map_mode: MapMode, dataset: str, split: str) -> dict[str, Any]:
    """The scores of the samples of each video, see `ImageScores.table`. Raises InputError when there is no sample."""
    scores = ImageScores(map_mode)
    samples_of = defaultdict[str, list[str]](list)
    for rows in videos:
        for row in rows:
            samples_of[row.key].append(row.image_id)
            if row.detections is None:
                scores.add_missing(row.image_id, row.truth, row.facts)
            else:
                scores.add(row.image_id, row.detections, row.facts)
    return {"protocol": LABEL, "dataset": dataset, "split": split, **scores.table(samples_of)}
