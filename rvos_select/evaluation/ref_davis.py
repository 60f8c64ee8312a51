"""Scores of Ref-DAVIS17: each annotator's objects by the protocol of `metrics.davis`, then the mean over annotators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.identity import answers_digest
from rvos_cache.masks import RleMasks
from rvos_cache.store import SelectionCache
from rvos_cache.system.progress import tracked
from rvos_cache.types import Expression, GroundTruth
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.against import Against, check_same_videos
from rvos_select.evaluation.ground_truth import dataset_of, select_videos
from rvos_select.evaluation.kinds import kinds_of
from rvos_select.evaluation.processes import in_order
from rvos_select.evaluation.scope import WHOLE, Scope
from rvos_select.merging.hints import warn_if_empty
from rvos_select.merging.label_maps import (
    Answer,
    Frames,
    MissingPredictionError,
    PngPredictions,
    Predictions,
    SelectionPredictions,
    label_maps,
)
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, resolve_policy
from rvos_select.metrics.davis import DavisTruth, score_maps
from rvos_select.metrics.metric import FrameMetrics
from rvos_select.metrics.scores import Scores
from rvos_select.metrics.slices import Facts, mean_share
from rvos_select.metrics.table import METRICS

Items = tuple[tuple[float, ...], ...]
"""The scores of one object, by each metric."""


def evaluate_pngs(
    dataset: str, root: Path, split: str, predictions: Path, scope: Scope = WHOLE, strict: bool = False
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png`, which are merged to one label map per annotator first.

    strict: the object of an expression is scored with its own prediction; else predictions are assigned anew, as the benchmark
    does. Every expression in `scope` needs its PNGs; with `scope.allow_missing` the object of one that lacks them scores 0.
    {"j", "f", "jf", "protocol", "annotators": {annotator: {"j", "f", "jf"}}, "objects": {"<video>/<annotator>/<object>": {"j",
    "f"}}, "slices": {attribute: {slice: {"j", "f", "jf", "count"}}}}, in fractions of 1; the objects are all those of the first
    frame, also where no expression names one. A slice counts each object once for every annotator, whose expressions differ.
    Raises InputError.
    """
    return _evaluate(dataset, _Job(Path(root), split, partial(PngPredictions, Path(predictions)), strict, scope))


def evaluate_selections(
    selections: Path,
    caches: Sequence[Path],
    dataset: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    policy: PolicyOptions = DEFAULT_POLICY,
    scope: Scope = WHOLE,
    strict: bool = False,
) -> dict[str, Any]:
    """Scores of selections, merged in memory, where the larger score wins a pixel; otherwise as `evaluate_pngs`.

    Without a threshold the best track of each expression is selected, as the benchmark's methods do. The annotation is the
    dataset's, at `root` or at the root of the card: caches hold neither void pixels nor objects without expression.
    Raises InputError.
    """
    source = TrackSource(caches)
    data = dataset_of(source, RefDavis17.name if dataset is None else dataset, root, split)
    if not isinstance(data, RefDavis17):
        raise InputError(
            f"{source.caches[0].path}: the dataset of this cache is not found, and caches hold no void pixels; give --root"
        )
    video_ids = select_videos(data.video_ids(), scope.videos, scope.limit, f"{data.root} {data.split}")
    check_same_videos(source, data, video_ids)
    opener = partial(SelectionPredictions, Path(selections), tuple(caches), policy)
    scores = _evaluate(data.name, _Job(data.root, data.split, opener, strict, scope))
    cache = SelectionCache(Path(selections))
    warn_if_empty(cache, resolve_policy(cache, policy, top1_by_default=True))
    return scores


def annotators(dataset: RefDavis17, video_id: str) -> list[dict[int, str]]:
    """Object number -> expression id, of each annotator of a video. Raises InputError: the list of expressions is damaged."""
    expressions: list[dict[int, str]] = [{} for _ in range(dataset.annotators)]
    for expression in dataset.expressions(video_id):
        (target,) = expression.targets or ("",)
        number = int(target.removeprefix(f"{video_id}-"))
        expressions[dataset.annotator(video_id, expression.expression_id)][number] = expression.expression_id
    return expressions


def davis_truth(dataset: RefDavis17, video_id: str) -> DavisTruth:
    """The scored objects and the void pixels. Raises InputError as `RefDavis17.scored_objects` does."""
    names = dataset.video(video_id).frame_names
    return DavisTruth(video_id, names, dataset.scored_objects(video_id), dataset.void(video_id))


@dataclass(frozen=True)
class _Job:
    """What a process opens for itself."""

    root: Path
    split: str
    opener: Callable[[], Predictions]
    strict: bool
    scope: Scope


@dataclass
class _VideoScores:
    """Scores of one video: "<video>/<annotator>/<object>" -> items, by annotator; keys of expressions without prediction; facts
    of each object, by the same keys, empty where the video cannot be read; truth: digest of the ground truth, None where it cannot
    be read."""

    objects: list[dict[str, Items]]
    missing: list[str] = field(default_factory=list)
    facts: dict[str, Facts] = field(default_factory=dict)
    truth: str | None = None


def _evaluate(name: str, job: _Job) -> dict[str, Any]:
    dataset, scope = RefDavis17(job.root, job.split), job.scope
    video_ids = select_videos(dataset.video_ids(), scope.videos, scope.limit, f"{dataset.root} {dataset.split}")
    # Faults of the predictions as a whole are raised before processes start.
    job.opener()
    videos = _score_videos(job, video_ids, scope.processes)
    scores = Scores(METRICS["davis"])
    for video in videos:
        for objects in video.objects:
            for key, items in objects.items():
                scores.add_item(key, items, video.facts.get(key))
    by_annotator = [[key for video in videos for key in video.objects[a]] for a in range(dataset.annotators)]
    if not scores.items:
        raise InputError(f"{dataset.file}: there is no object to score in {len(video_ids)} videos; check --video and --limit")
    tables = [_numbers_first(scores.means(keys)) for keys in by_annotator]
    table: dict[str, Any] = {"dataset": name, "split": job.split}
    table |= {key: float(np.mean([of_annotator[key] for of_annotator in tables])) for key in tables[0]}
    table["protocol"] = "davis-strict" if job.strict else "davis-unsupervised"
    table["annotators"] = {str(a): of_annotator for a, of_annotator in enumerate(tables)}
    table["objects"] = {key: scores.numbers(key) for key in scores.items}
    slices = scores.slices()
    for of_attribute in slices.get("slices", {}).values():
        for key, row in of_attribute.items():
            of_attribute[key] = _numbers_first(row)
    missing = [key for video in videos for key in video.missing]
    against = Against.of(dataset)
    against.videos = {v: video.truth for v, video in zip(video_ids, videos) if video.truth is not None}
    return table | slices | ({"missing": missing} if missing else {}) | against.to_json()


def _digest(truth: DavisTruth, expressions: Iterable[Expression]) -> str:
    """The digest of a video's objects, void pixels and sentences."""
    masks = RleMasks.concatenate([truth.objects, truth.void])
    names = (*(str(number) for number in range(1, truth.objects.shape[0] + 1)), "void")
    return answers_digest(truth.frame_names, expressions, GroundTruth(names, masks, np.ones(masks.shape[1], bool)))


def _numbers_first(means: dict[str, Any]) -> dict[str, Any]:
    """The same with the means of the objects' own numbers before those computed from them: "j", "f", "jf"."""
    own = [field.key for metric in METRICS["davis"] for field in metric.item_fields if field.key in means]
    return {**{key: means[key] for key in own}, **means}


def _score_videos(job: _Job, videos: Sequence[str], processes: int) -> list[_VideoScores]:
    """The scores of each video in order; each process opens the job once and scores every n-th video."""
    count = max(1, min(processes, len(videos)))
    if count == 1:
        return _score_part(job, tracked(videos, "evaluate"))
    parts = tracked(
        in_order(partial(_score_part, job), [videos[i::count] for i in range(count)], count), "evaluate", count, "parts"
    )
    scores = list(parts)
    return [scores[i % count][i // count] for i in range(len(videos))]


def _score_part(job: _Job, videos: Iterable[str]) -> list[_VideoScores]:
    dataset, predictions, kind = RefDavis17(job.root, job.split), job.opener(), kinds_of(job.scope.texts)
    return [_score_video(dataset, predictions, kind, video_id, job) for video_id in videos]


def _score_video(
    dataset: RefDavis17, predictions: Predictions, kind: Callable[[Expression], str | None], video_id: str, job: _Job
) -> _VideoScores:
    try:
        named, truth = annotators(dataset, video_id), davis_truth(dataset, video_id)
    except InputError:
        if not job.scope.allow_missing:
            raise
        return _unreadable(dataset, video_id)
    video, metrics = Frames(video_id, truth.frame_names, truth.objects.size), FrameMetrics(METRICS["davis"])
    shares = [mean_share(areas, video.size) for areas in truth.objects.area().tolist()]
    by_id = {e.expression_id: e for e in dataset.expressions(video_id)}
    scores = _VideoScores([], truth=_digest(truth, by_id.values()))
    for a, expressions in enumerate(named):
        answers, missing = _predict(predictions, video, expressions, job.scope.allow_missing)
        scores.missing += [f"{video_id}/{expressions[number]}" for number in missing]
        numbers = score_maps(label_maps(answers, video), truth, job.strict, [n - 1 for n in missing], metrics)
        keys = [f"{video_id}/{a}/{number}" for number in range(1, len(numbers) + 1)]
        # `score_maps` returns means over the frames: one row is all frames of an object.
        scores.objects.append({key: metrics.items(row[None], None) for key, row in zip(keys, numbers)})
        for number, (key, share) in enumerate(zip(keys, shares), 1):
            expression = by_id.get(expressions.get(number, ""))
            words, kind_of = (0, None) if expression is None else (len(expression.text.split()), kind(expression))
            scores.facts[key] = Facts(words, None, len(video.frame_names), share, kind_of, len(shares))
    return scores


def _predict(
    predictions: Predictions, video: Frames, expressions: dict[int, str], allow_missing: bool
) -> tuple[list[Answer], list[int]]:
    """The predictions of an annotator's expressions, and the numbers of the objects without one. Raises InputError."""
    answers, missing = [], []
    for number, expression_id in expressions.items():
        try:
            answers.append(predictions.predict(video, expression_id, number))
        except MissingPredictionError as error:
            if not allow_missing:
                raise InputError(f"{error}, or give --allow-missing to score it 0") from error
            missing.append(number)
    return answers, missing


def _unreadable(dataset: RefDavis17, video_id: str) -> _VideoScores:
    """A video whose annotation or expressions are damaged: the objects that its expressions name score 0, else object 1."""
    try:
        numbers = [list(row) for row in annotators(dataset, video_id)]
        missing = [f"{video_id}/{expression_id}" for expression_id in dataset.expression_ids(video_id)]
    except InputError:
        numbers, missing = [[1]] * dataset.annotators, [video_id]
    zero = tuple(metric.missing(None) for metric in METRICS["davis"])
    return _VideoScores([{f"{video_id}/{a}/{n}": zero for n in row} for a, row in enumerate(numbers)], missing)
