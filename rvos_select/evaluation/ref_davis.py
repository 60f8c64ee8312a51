"""Score predictions of Ref-DAVIS17: each annotator's objects by the protocol of `metrics.davis`, then the annotators' mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.palette import palette_masks, read_palette
from rvos_cache.datasets.palette_split import ANNOTATIONS
from rvos_cache.datasets.ref_davis17 import VOID, RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.types import Expression
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.kinds import kinds_of
from rvos_select.evaluation.processes import in_order
from rvos_select.evaluation.scope import WHOLE, Scope
from rvos_select.merging.label_maps import (
    Answers,
    Frames,
    MissingAnswerError,
    PngAnswers,
    SelectionAnswers,
    annotators,
    label_maps,
)
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions
from rvos_select.metrics.answers import chosen_videos, dataset_of
from rvos_select.metrics.davis import DavisTruth, score_maps
from rvos_select.metrics.slices import Facts, mean_share, sliced

OPTIONS = frozenset({"strict"})


def evaluate_pngs(
    dataset: str, root: Path, split: str, predictions: Path, scope: Scope = WHOLE, strict: bool = False
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png`, which are merged to one picture per annotator first.

    strict: the object of an expression is scored with its own prediction; else predictions are assigned anew, as the benchmark
    does. Every expression in `scope` needs its PNGs; the object of one that lacks them scores 0 with `scope.allow_missing`.
    {"j", "f", "jf", "protocol", "annotators": {annotator: {"j", "f", "jf"}}, "objects": {"<video>/<annotator>/<object>": {"j",
    "f"}}, "slices": {attribute: {part: {"j", "f", "jf", "count"}}}}, in fractions of 1; the objects are all those of the first
    frame, also where no expression names one. A slice counts each object once for every annotator: sentences differ.
    Raises InputError.
    """
    return _evaluate(dataset, _Job(Path(root), split, partial(PngAnswers, Path(predictions)), strict, scope))


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
    """Scores of selections, merged in memory, where the larger score wins a pixel; as `evaluate_pngs` else.

    Without a threshold the best track of each expression answers, as the benchmark's methods do. The annotation is the
    dataset's, at `root` or where the hint in the card leads: caches hold neither void pixels nor objects without expression.
    Raises InputError.
    """
    source = TrackSource(caches)
    known = dataset_of(source, RefDavis17.name if dataset is None else dataset, root, split)
    if not isinstance(known, RefDavis17):
        raise InputError(
            f"{source.caches[0].path}: the dataset of this cache is not found, and caches hold no void pixels; give --root"
        )
    opened = partial(SelectionAnswers, Path(selections), tuple(caches), policy)
    return _evaluate(known.name, _Job(known.root, known.split, opened, strict, scope))


def davis_truth(dataset: RefDavis17, video_id: str) -> DavisTruth:
    """The objects of the first frame and the void pixels. Raises InputError: a PNG is missing or damaged."""
    video = dataset.video(video_id)
    folder = dataset.folder / ANNOTATIONS / video_id
    paths = [folder / f"{name}.png" for name in video.frame_names]
    first = read_palette(paths[0], video.size)
    count = int(first[first != VOID].max(initial=0))
    held = palette_masks(paths, [*range(1, count + 1), VOID], video.size)
    return DavisTruth(video_id, video.frame_names, held.select(range(count)), held.select([count]))


@dataclass(frozen=True)
class _Job:
    """What a process opens for itself."""

    root: Path
    split: str
    opened: Callable[[], Answers]
    strict: bool
    scope: Scope


@dataclass
class _VideoScores:
    """Of one video: "<video>/<annotator>/<object>" -> J and F, by annotator; the expressions that are missing; what is known of
    each object, by the same keys, nothing where the video cannot be read."""

    objects: list[dict[str, tuple[float, float]]]
    missing: list[str] = field(default_factory=list)
    facts: dict[str, Facts] = field(default_factory=dict)


def _evaluate(name: str, job: _Job) -> dict[str, Any]:
    dataset, scope = RefDavis17(job.root, job.split), job.scope
    asked = chosen_videos(dataset.video_ids(), scope.videos, scope.limit, f"{dataset.root} {dataset.split}")
    job.opened()
    found = _each(job, asked, scope.processes)
    rows = [{k: v for video in found for k, v in video.objects[a].items()} for a in range(dataset.annotators)]
    if not any(rows):
        raise InputError(f"{dataset.file}: there is no object to score in {len(asked)} videos; check --video and --limit")
    tables, every = [_means(list(row.values())) for row in rows], {k: v for row in rows for k, v in row.items()}
    out: dict[str, Any] = {"dataset": name, "split": job.split}
    out |= {key: float(np.mean([table[key] for table in tables])) for key in ("j", "f", "jf")}
    out["protocol"] = "davis-strict" if job.strict else "davis-unsupervised"
    out["annotators"] = {str(a): table for a, table in enumerate(tables)}
    out["objects"] = {key: {"j": j, "f": f} for video in found for row in video.objects for key, (j, f) in row.items()}
    known = {key: video.facts.get(key) for video in found for row in video.objects for key in row}
    slices = sliced(known, lambda keys: _means([every[key] for key in keys]))
    missing = [key for video in found for key in video.missing]
    return out | ({"slices": slices} if slices else {}) | ({"missing": missing} if missing else {})


def _means(rows: list[tuple[float, float]]) -> dict[str, float]:
    j, f = (float(x) for x in np.mean(np.array(rows, np.float64), axis=0))
    return {"j": j, "f": f, "jf": (j + f) / 2}


def _each(job: _Job, videos: Sequence[str], processes: int) -> list[_VideoScores]:
    """The scores of each video in order; each process opens the job once and takes every n-th video."""
    count = max(1, min(processes, len(videos)))
    parts = list(in_order(partial(_part, job), [videos[i::count] for i in range(count)], count))
    return [parts[i % count][i // count] for i in range(len(videos))]


def _part(job: _Job, videos: Sequence[str]) -> list[_VideoScores]:
    dataset, answers, kind = RefDavis17(job.root, job.split), job.opened(), kinds_of(job.scope.texts)
    return [_score_video(dataset, answers, kind, video_id, job) for video_id in videos]


def _score_video(
    dataset: RefDavis17, answers: Answers, kind: Callable[[Expression], str | None], video_id: str, job: _Job
) -> _VideoScores:
    try:
        said, truth = annotators(dataset, video_id), davis_truth(dataset, video_id)
    except InputError:
        if not job.scope.allow_missing:
            raise
        return _unreadable(dataset, video_id)
    video = Frames(video_id, truth.frame_names, truth.objects.size)
    shares = [mean_share(areas, video.size) for areas in truth.objects.area().tolist()]
    texts = {e.expression_id: e for e in dataset.expressions(video_id)}
    out = _VideoScores([])
    for a, expressions in enumerate(said):
        given, lost = [], []
        for number, expression_id in expressions.items():
            try:
                given.append(answers.answer(video, expression_id, number))
            except MissingAnswerError as error:
                if not job.scope.allow_missing:
                    raise InputError(f"{error}, or give --allow-missing to score it 0") from error
                lost.append(number - 1)
                out.missing.append(f"{video_id}/{expression_id}")
        scores = score_maps(label_maps(given, video), truth, job.strict, lost)
        keys = [f"{video_id}/{a}/{number}" for number in range(1, len(scores) + 1)]
        out.objects.append({key: (float(j), float(f)) for key, (j, f) in zip(keys, scores)})
        for number, (key, share) in enumerate(zip(keys, shares), 1):
            named = texts.get(expressions.get(number, ""))
            words, of_words = (0, None) if named is None else (len(named.text.split()), kind(named))
            out.facts[key] = Facts(words, None, len(video.frame_names), share, of_words, len(shares))
    return out


def _unreadable(dataset: RefDavis17, video_id: str) -> _VideoScores:
    """A video whose annotation or expressions are damaged: its objects that are known score 0, one where none is."""
    try:
        numbers = [list(row) for row in annotators(dataset, video_id)]
        missing = [f"{video_id}/{expression_id}" for expression_id in dataset.expression_ids(video_id)]
    except InputError:
        numbers, missing = [[1]] * dataset.annotators, [video_id]
    return _VideoScores([{f"{video_id}/{a}/{n}": (0.0, 0.0) for n in row} for a, row in enumerate(numbers)], missing)
