"""Score predictions: J, F, J&F, a missing prediction being an error that names it, never a dropped row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.frames import read_mask_png
from rvos_cache.masks import RleMasks, empty_rle, encode
from rvos_cache.store import SelectionCache
from rvos_select.caches import TrackSource
from rvos_select.merge import check_pair, default_threshold, merge_masks
from rvos_select.metrics.answers import VideoAnswers, from_dataset, of_caches
from rvos_select.metrics.scores import Scores, score

Row = tuple[str, tuple[float, float] | None, str | None]
"""Key "<video>/<expression>", (J, F) or None where the prediction is missing, kind."""


def evaluate_pngs(
    dataset: str,
    root: Path,
    split: str,
    predictions: Path,
    videos: Sequence[str] = (),
    limit: int | None = None,
    allow_missing: bool = False,
    processes: int = 1,
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png`; any value but 0 is foreground.

    Every expression of the split, or of `videos` or the first `limit`, is needed: an absent PNG of an annotated frame
    is an InputError that names it, or, with `allow_missing`, scores its expression 0 and lists it under "missing".
    """
    predictions = Path(predictions)
    if not predictions.is_dir():
        raise InputError(f"{predictions}: no such folder of predictions; run rvos-select merge first")
    answers = from_dataset(open_dataset(dataset, root, split), videos, limit)
    tasks = ((video.frame_names, video.truth.annotated, *row) for video in answers for row in _rows(video))
    return _table(_map(_score_pngs, (predictions, allow_missing), tasks, processes))


def evaluate_selections(
    selections: Path,
    caches: Sequence[Path],
    dataset: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    threshold: float | None = None,
    top1: bool = False,
    videos: Sequence[str] = (),
    limit: int | None = None,
    allow_missing: bool = False,
    processes: int = 1,
) -> dict[str, Any]:
    """Scores of selections, merged in memory. threshold None: the selector's default; answers: see `of_caches`."""
    source, said = TrackSource(caches), SelectionCache(selections)
    limit_score = default_threshold(said) if threshold is None else threshold
    have = set(said.video_ids())

    def tasks() -> Iterator[tuple[Any, ...]]:
        for video in of_caches(source, dataset, root, split, videos, limit):
            found = {}
            if video.video_id in have:
                check_pair(said, source, video.video_id)
                found = {s.expression_id: s for s in said.selections(video.video_id)}
            masks = source.masks(video.video_id) if found else None
            for key, truth, kind in _rows(video):
                selection = found.get(key.partition("/")[2])
                if selection is None and not allow_missing:
                    raise InputError(
                        f"{said.path}: no selection of expression {key}; extract and predict its video, or give --allow-missing"
                    )
                merged = None
                if selection is not None and masks is not None:
                    merged = merge_masks(selection, masks, limit_score, top1)
                yield video.truth.annotated, key, truth, kind, merged

    return _table(_map(_score_masks, (), tasks(), processes))


def _rows(video: VideoAnswers) -> Iterator[tuple[str, RleMasks, str | None]]:
    """Key, union of the targets and kind of each expression; equal targets share one union."""
    unions: dict[tuple[str, ...], RleMasks] = {}
    for expression in video.expressions:
        targets = expression.targets or ()
        if targets not in unions or expression.targets is None:
            unions[targets] = video.union(expression)
        yield f"{video.video_id}/{expression.expression_id}", unions[targets], video.kind(expression)


def _score_pngs(fixed: tuple[Path, bool], task: tuple[Any, ...]) -> Row:
    predictions, allow_missing = fixed
    frame_names, annotated, key, truth, kind = task
    folder = predictions / key
    row = [empty_rle(truth.size)] * len(frame_names)
    for t in np.flatnonzero(annotated):
        path = folder / f"{frame_names[t]}.png"
        if not path.is_file():
            if allow_missing:
                return key, None, kind
            raise InputError(f"{path}: the prediction is missing; write it, or give --allow-missing to score it 0")
        row[t] = encode(read_mask_png(path, truth.size))
    return key, score(RleMasks.from_bytes([row], len(row), truth.size), truth, annotated), kind


def _score_masks(fixed: tuple[()], task: tuple[Any, ...]) -> Row:
    annotated, key, truth, kind, merged = task
    if merged is None:
        return key, None, kind
    if (merged.shape, merged.size) != (truth.shape, truth.size):
        raise InputError(
            f"expression {key}: predicted {merged.shape[1]} frames of {merged.size}, the ground truth has "
            f"{truth.shape[1]} of {truth.size}; extract the video again from this dataset"
        )
    return key, score(merged, truth, annotated), kind


def _map(
    step: Callable[[Any, tuple[Any, ...]], Row], fixed: Any, tasks: Iterable[tuple[Any, ...]], processes: int
) -> Iterator[Row]:
    """`step` of every task in order, in this process or several."""
    if processes <= 1:
        yield from map(step, repeat(fixed), tasks)
        return
    # spawn: forking a process that has loaded torch or zarr threads can hang.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(step, repeat(fixed), list(tasks), chunksize=8)


def _table(rows: Iterable[Row]) -> dict[str, Any]:
    scores = Scores()
    for row in rows:
        scores.add(*row)
    return scores.table()
