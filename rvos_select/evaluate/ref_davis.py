"""Score predictions of Ref-DAVIS17: each annotator's objects by the protocol of `metrics.davis`, then the annotators' mean."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.palette import palette_masks, read_palette
from rvos_cache.datasets.palette_split import ANNOTATIONS
from rvos_cache.datasets.ref_davis17 import VOID, RefDavis17
from rvos_cache.errors import InputError
from rvos_select.caches import TrackSource
from rvos_select.evaluate.scope import WHOLE, Scope
from rvos_select.label_maps import Answers, Frames, MissingAnswerError, PngAnswers, SelectionAnswers, annotators, label_maps
from rvos_select.metrics.answers import chosen_videos, dataset_of
from rvos_select.metrics.davis import DavisTruth, score_maps

OPTIONS = frozenset({"strict"})


def evaluate_pngs(
    dataset: str, root: Path, split: str, predictions: Path, scope: Scope = WHOLE, strict: bool = False
) -> dict[str, Any]:
    """See `evaluate_ref_davis_pngs`. Raises InputError, also for text caches: objects, and not texts, are scored."""
    scores = evaluate_ref_davis_pngs(root, split, predictions, strict=strict, scope=scope)
    return {"dataset": dataset, "split": split, **scores}


def evaluate_selections(
    selections: Path,
    caches: Sequence[Path],
    dataset: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    threshold: float | None = None,
    top1: bool = False,
    scope: Scope = WHOLE,
    strict: bool = False,
) -> dict[str, Any]:
    """See `evaluate_ref_davis_selections`; the best track of each expression unless a threshold is given. Raises InputError."""
    best = top1 or threshold is None
    found = evaluate_ref_davis_selections(
        selections, caches, root=root, split=split, threshold=threshold, top1=best, strict=strict, scope=scope
    )
    card = TrackSource(caches).card
    return {"dataset": card.dataset, "split": card.split, **found}


def _no_texts(texts: Sequence[Path]) -> None:
    if texts:
        raise InputError(f"{texts[0]}: slices by the text are no part of the scores of Ref-DAVIS17; leave --text out")


def evaluate_ref_davis_pngs(
    root: Path,
    split: str,
    predictions: Path,
    *,
    strict: bool = False,
    scope: Scope = WHOLE,
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png`, which are merged to one picture per annotator first.

    strict: the object of an expression is scored with its own prediction; else predictions are assigned anew, as the benchmark
    does. Every expression in `scope` needs its PNGs; the object of one that lacks them scores 0 with `allow_missing`.
    {"j", "f", "jf", "protocol", "annotators": {annotator: {"j", "f", "jf"}}, "objects": {"<video>/<annotator>/<object>": {"j",
    "f"}}}, in fractions of 1; the objects are all those of the first frame, also where no expression names one.
    """
    return _evaluate(_Job(Path(root), split, partial(PngAnswers, Path(predictions)), strict, scope.allow_missing), scope)


def evaluate_ref_davis_selections(
    selections: Path,
    caches: Sequence[Path],
    *,
    root: Path | None = None,
    split: str | None = None,
    threshold: float | None = None,
    top1: bool = True,
    strict: bool = False,
    scope: Scope = WHOLE,
) -> dict[str, Any]:
    """Scores of selections, merged in memory, where the larger score wins a pixel; as `evaluate_ref_davis_pngs` else.

    top1: the best track of each expression, as the benchmark's methods do; else the tracks above `threshold` (None: the
    selector's default). The annotation is the dataset's, at `root` or where the hint in the card leads: caches hold neither
    void pixels nor objects without expression.
    """
    source = TrackSource(caches)
    known = dataset_of(source, RefDavis17.name, root, split)
    if not isinstance(known, RefDavis17):
        raise InputError(
            f"{source.caches[0].path}: the dataset of this cache is not found, and caches hold no void pixels; give --root"
        )
    opened = partial(SelectionAnswers, Path(selections), tuple(caches), threshold, top1)
    return _evaluate(_Job(known.root, known.split, opened, strict, scope.allow_missing), scope)


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
    allow_missing: bool


@dataclass
class _VideoScores:
    """Of one video: "<video>/<annotator>/<object>" -> J and F, by annotator; the expressions that are missing."""

    objects: list[dict[str, tuple[float, float]]]
    missing: list[str] = field(default_factory=list)


def _evaluate(job: _Job, scope: Scope) -> dict[str, Any]:
    _no_texts(scope.texts)
    dataset = RefDavis17(job.root, job.split)
    asked = chosen_videos(dataset.video_ids(), scope.videos, scope.limit, f"{dataset.root} {dataset.split}")
    job.opened()
    found = _each(job, asked, min(scope.processes, len(asked)))
    rows = [{k: v for video in found for k, v in video.objects[a].items()} for a in range(dataset.annotators)]
    if not any(rows):
        raise InputError(f"{dataset.file}: there is no object to score in {len(asked)} videos; check --video and --limit")
    tables = [_means(list(row.values())) for row in rows]
    out: dict[str, Any] = {key: float(np.mean([table[key] for table in tables])) for key in ("j", "f", "jf")}
    out["protocol"] = "davis-strict" if job.strict else "davis-unsupervised"
    out["annotators"] = {str(a): table for a, table in enumerate(tables)}
    out["objects"] = {key: {"j": j, "f": f} for video in found for row in video.objects for key, (j, f) in row.items()}
    missing = [key for video in found for key in video.missing]
    return {**out, "missing": missing} if missing else out


def _means(rows: list[tuple[float, float]]) -> dict[str, float]:
    j, f = (float(x) for x in np.mean(np.array(rows, np.float64), axis=0))
    return {"j": j, "f": f, "jf": (j + f) / 2}


def _each(job: _Job, videos: Sequence[str], processes: int) -> list[_VideoScores]:
    """The scores of each video in order; each process takes every n-th video."""
    if processes <= 1:
        return _part(job, videos)
    # spawn: forking a process that has loaded torch or zarr threads can hang. Ctrl-C is the parent's to handle.
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        parts = list(pool.map(_part, [job] * processes, [videos[i::processes] for i in range(processes)]))
    return [parts[i % processes][i // processes] for i in range(len(videos))]


def _part(job: _Job, videos: Sequence[str]) -> list[_VideoScores]:
    dataset, answers = RefDavis17(job.root, job.split), job.opened()
    return [_score_video(dataset, answers, video_id, job) for video_id in videos]


def _score_video(dataset: RefDavis17, answers: Answers, video_id: str, job: _Job) -> _VideoScores:
    try:
        said, truth = annotators(dataset, video_id), davis_truth(dataset, video_id)
    except InputError:
        if not job.allow_missing:
            raise
        return _unreadable(dataset, video_id)
    video = Frames(video_id, truth.frame_names, truth.objects.size)
    out = _VideoScores([])
    for a, expressions in enumerate(said):
        given, lost = [], []
        for number, expression_id in expressions.items():
            try:
                given.append(answers.answer(video, expression_id, number))
            except MissingAnswerError as error:
                if not job.allow_missing:
                    raise InputError(f"{error}, or give --allow-missing to score it 0") from error
                lost.append(number - 1)
                out.missing.append(f"{video_id}/{expression_id}")
        scores = score_maps(label_maps(given, video), truth, job.strict, lost)
        out.objects.append({f"{video_id}/{a}/{i + 1}": (float(j), float(f)) for i, (j, f) in enumerate(scores)})
    return out


def _unreadable(dataset: RefDavis17, video_id: str) -> _VideoScores:
    """A video whose annotation or expressions are damaged: its objects that are known score 0, one where none is."""
    try:
        numbers = [list(row) for row in annotators(dataset, video_id)]
        missing = [f"{video_id}/{expression_id}" for expression_id in dataset.expression_ids(video_id)]
    except InputError:
        numbers, missing = [[1]] * dataset.annotators, [video_id]
    return _VideoScores([{f"{video_id}/{a}/{n}": (0.0, 0.0) for n in row} for a, row in enumerate(numbers)], missing)
