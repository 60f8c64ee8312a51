"""Score predictions: J, F, J&F, a missing prediction being an error that names it, never a dropped row."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice, repeat
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
from rvos_select.merge import check_cards, check_pair, default_threshold, merge_masks
from rvos_select.metrics.answers import VideoAnswers, answers, chosen_videos, dataset_of, listed_videos
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
    source = open_dataset(dataset, root, split)
    asked = chosen_videos(source.video_ids(), videos, limit, f"{source.root} {source.split}")

    def tasks() -> Iterator[tuple[Any, ...]]:
        for video in answers(asked, source, None, allow_missing):
            if isinstance(video, VideoAnswers):
                yield from ((video.frame_names, video.truth.annotated, *row) for row in _rows(video))
            else:
                yield from (((), None, key, None, None) for key in video)

    return _table(_map(_score_pngs, (predictions, allow_missing), tasks(), processes))


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
    """Scores of selections, merged in memory. threshold None: the selector's default.

    The answers are the dataset's where `root`, or the hint in the card, leads to it; else, and where the dataset has lost a
    video since, those that the caches hold. A video that failed in extraction and whose expressions nobody knows counts as
    one expression, "<video>". Raises like `evaluate_pngs`.
    """
    source, said = TrackSource(caches), SelectionCache(selections)
    check_cards(said, source)
    known = dataset_of(source, dataset, root, split)
    asked = chosen_videos(listed_videos(source, known), videos, limit, str(source.caches[0].path))
    limit_score = default_threshold(said) if threshold is None else threshold
    have = set(said.video_ids())

    def tasks() -> Iterator[tuple[Any, ...]]:
        for video in answers(asked, known, source if root is None else None, allow_missing):
            if not isinstance(video, VideoAnswers):
                yield from ((None, key, None, None, None) for key in video)
                continue
            found = {}
            if video.video_id not in source.of and not allow_missing:
                raise InputError(f"{source.absence(video.video_id)}, or give --allow-missing to score it 0")
            if video.video_id in have and video.video_id in source.of:
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
    if truth is None:
        return key, None, kind
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
    """`step` of every task in order, in this process or several; only the tasks of the next moments are held."""
    if processes <= 1:
        yield from map(step, repeat(fixed), tasks)
        return
    left, pending = iter(tasks), deque[Future[list[Row]]]()
    # spawn: forking a process that has loaded torch or zarr threads can hang. Ctrl-C is the parent's to handle.
    with ProcessPoolExecutor(processes, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            while chunk := list(islice(left, 8)):
                pending.append(pool.submit(_chunk, step, fixed, chunk))
                if len(pending) > 2 * processes:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _chunk(step: Callable[[Any, tuple[Any, ...]], Row], fixed: Any, tasks: list[tuple[Any, ...]]) -> list[Row]:
    return [step(fixed, task) for task in tasks]


def _table(rows: Iterable[Row]) -> dict[str, Any]:
    scores = Scores()
    for row in rows:
        scores.add(*row)
    return scores.table()
