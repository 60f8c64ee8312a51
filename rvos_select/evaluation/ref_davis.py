"""Scores of Ref-DAVIS17: each annotator's objects by the protocol of `metrics.davis`, then the mean over annotators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.palette import palette_masks, read_palette
from rvos_cache.datasets.palette_split import ANNOTATIONS
from rvos_cache.datasets.ref_davis17 import VOID, RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.progress import tracked
from rvos_cache.types import Expression
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.ground_truth import dataset_of, select_videos
from rvos_select.evaluation.kinds import kinds_of
from rvos_select.evaluation.processes import in_order
from rvos_select.evaluation.scope import WHOLE, Scope
from rvos_select.merging.label_maps import (
    Answer,
    Frames,
    MissingPredictionError,
    PngPredictions,
    Predictions,
    SelectionPredictions,
    label_maps,
)
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions
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
    opener = partial(SelectionPredictions, Path(selections), tuple(caches), policy)
    return _evaluate(data.name, _Job(data.root, data.split, opener, strict, scope))


def annotators(dataset: RefDavis17, video_id: str) -> list[dict[int, str]]:
    """Object number -> expression id, of each annotator of a video. Raises InputError: the list of expressions is damaged."""
    expressions: list[dict[int, str]] = [{} for _ in range(dataset.annotators)]
    for expression in dataset.expressions(video_id):
        (target,) = expression.targets or ("",)
        number = int(target.removeprefix(f"{video_id}-"))
        expressions[dataset.annotator(video_id, expression.expression_id)][number] = expression.expression_id
    return expressions


def davis_truth(dataset: RefDavis17, video_id: str) -> DavisTruth:
    """The objects of the first frame and the void pixels. Raises InputError: a PNG is missing or damaged."""
    video = dataset.video(video_id)
    folder = dataset.folder / ANNOTATIONS / video_id
    paths = [folder / f"{name}.png" for name in video.frame_names]
    first = read_palette(paths[0], video.size)
    count = int(first[first != VOID].max(initial=0))
    masks = palette_masks(paths, [*range(1, count + 1), VOID], video.size)
    return DavisTruth(video_id, video.frame_names, masks.select(range(count)), masks.select([count]))


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
    of each object, by the same keys, empty where the video cannot be read."""

    objects: list[dict[str, Items]]
    missing: list[str] = field(default_factory=list)
    facts: dict[str, Facts] = field(default_factory=dict)


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
    return table | slices | ({"missing": missing} if missing else {})


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
    scores = _VideoScores([])
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
