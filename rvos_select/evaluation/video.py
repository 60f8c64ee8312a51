"""J, F and J&F of whole videos, as MeViS and Ref-YouTube-VOS score them; N-acc and T-acc where expressions have no target.

A missing prediction is an error that names it, never a dropped row. A video's frames are worked through one after the other,
with every expression in each of them: what equal targets, equal predictions or both share is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from rvos_cache.datasets import open_dataset
from rvos_cache.errors import InputError
from rvos_cache.mask_png import decode_mask_png
from rvos_cache.masks import RleMasks
from rvos_cache.store import SelectionCache
from rvos_cache.types import Expression
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.kinds import kinds_of
from rvos_select.evaluation.pngs import check_folder, prediction_bytes
from rvos_select.evaluation.processes import in_order
from rvos_select.evaluation.scope import WHOLE, Scope
from rvos_select.evaluation.selected import check_frames, selections_of
from rvos_select.merging.merge import check_cards, check_width
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, SelectionPolicy, resolve_policy
from rvos_select.metrics.answers import VideoAnswers, answers, chosen_videos, dataset_of, listed_videos
from rvos_select.metrics.scores import Scores
from rvos_select.metrics.silhouette import EMPTY, Silhouette, j_and_f
from rvos_select.metrics.slices import Facts, mean_share

OPTIONS: frozenset[str] = frozenset()
PROTOCOL = "video"
Picks = tuple[int, tuple[int, ...]]
"""Which masks are OR-ed: the position of their RleMasks in `Drawn.masks`, and their own in it."""


@dataclass(frozen=True)
class Row:
    """One expression's scores. value: J and F, None where the prediction is missing; empty: no pixel in any scored frame."""

    key: str
    value: tuple[float, float] | None = None
    kind: str | None = None
    facts: Facts | None = None
    empty: bool | None = None


@dataclass(frozen=True)
class Asked:
    """One expression of a task. targets: positions of its objects in the task's truth."""

    key: str
    targets: tuple[int, ...]
    words: int
    kind: str | None
    cue: str | None


@dataclass(frozen=True)
class Pngs:
    """Predictions as files, `<folder>/<video>/<expression>/<frame>.png`."""

    folder: Path
    allow_missing: bool

    def named(self, task: Task, asked: Asked, t: int) -> bytes | None:
        """What tells the prediction of frame t from others: the file's bytes; None where it is missing, or InputError."""
        return prediction_bytes(self._path(task, asked, t), self.allow_missing)

    def silhouette(self, task: Task, asked: Asked, t: int, name: Any) -> Silhouette:
        """The mask of frame t. Raises InputError for a file that is no mask of the frame's size."""
        return Silhouette.of_pixels(decode_mask_png(self._path(task, asked, t), name, task.truth.size))

    def _path(self, task: Task, asked: Asked, t: int) -> Path:
        return self.folder / asked.key / f"{task.frame_names[t]}.png"


@dataclass(frozen=True)
class Drawn:
    """Predictions as unions of masks. picks: by expression key; no key: the prediction is missing."""

    masks: tuple[RleMasks, ...] = ()
    picks: dict[str, Picks] = field(default_factory=dict)

    def named(self, task: Task, asked: Asked, t: int) -> Picks | None:
        """What tells the prediction from others; None where it is missing."""
        return self.picks.get(asked.key)

    def silhouette(self, task: Task, asked: Asked, t: int, name: Any) -> Silhouette:
        """The OR of the picked masks in frame t."""
        which, picked = name
        return union(self.masks[which], picked, t)


@dataclass(frozen=True)
class Task:
    """One video to score. annotated: positions of the frames that are; lost: keys of a video that cannot be read."""

    frame_names: tuple[str, ...]
    annotated: tuple[int, ...]
    truth: RleMasks
    asked: tuple[Asked, ...]
    predictions: Pngs | Drawn
    lost: tuple[str, ...] = ()


def union(masks: RleMasks, picked: Sequence[int], t: int) -> Silhouette:
    """The OR of the masks `picked` in frame t; none: empty."""
    if not picked:
        return EMPTY
    raw = masks.bytes_at(picked[0], t)
    if len(picked) > 1:
        raw = bytes(coco.merge([masks.at(k, t) for k in picked], intersect=0)["counts"])
    return Silhouette.of_runs(raw, masks.size)


def score_video(task: Task) -> list[Row]:
    """The scores of every expression of a video. Raises InputError when no frame is annotated or a prediction is missing."""
    if task.lost:
        return [Row(key) for key in task.lost]
    if not task.annotated:
        raise InputError("an expression's video has no annotated frame, so it cannot be scored; leave the video out")
    values = np.zeros((len(task.asked), len(task.annotated), 2))
    missing, drawn = [False] * len(task.asked), [False] * len(task.asked)
    shares: dict[tuple[int, ...], list[int]] = {asked.targets: [] for asked in task.asked}
    for i, t in enumerate(task.annotated):
        truths = {targets: union(task.truth, targets, t) for targets in shares}
        for targets, truth in truths.items():
            shares[targets].append(truth.area)
        seen: dict[Any, Silhouette] = {}
        done: dict[tuple[Any, tuple[int, ...]], tuple[float, float]] = {}
        for e, asked in enumerate(task.asked):
            name = None if missing[e] else task.predictions.named(task, asked, t)
            if name is None:
                missing[e] = True
                continue
            if name not in seen:
                seen[name] = task.predictions.silhouette(task, asked, t, name)
            drawn[e] = drawn[e] or seen[name].area > 0
            pair = (name, asked.targets)
            if pair not in done:
                done[pair] = j_and_f(seen[name], truths[asked.targets])
            values[e, i] = done[pair]
    means = values.mean(axis=1)
    return [
        Row(
            asked.key,
            None if missing[e] else (float(means[e, 0]), float(means[e, 1])),
            asked.kind,
            _facts(asked, len(task.frame_names), shares[asked.targets], task.truth.size),
            None if missing[e] else not drawn[e],
        )
        for e, asked in enumerate(task.asked)
    ]


def _facts(asked: Asked, frames: int, areas: Sequence[int], size: tuple[int, int]) -> Facts:
    return Facts(asked.words, len(asked.targets), frames, mean_share(areas, size), asked.kind or asked.cue)


def evaluate_pngs(
    dataset: str,
    root: Path,
    split: str,
    predictions: Path,
    scope: Scope = WHOLE,
) -> dict[str, Any]:
    """Scores of `<predictions>/<video>/<expression>/<frame>.png`; any value but 0 is foreground.

    Every annotated frame of the expressions in `scope` needs its PNG. Raises InputError that names the one that is absent.
    """
    predictions = check_folder(Path(predictions))
    source = open_dataset(dataset, root, split)
    asked = chosen_videos(source.video_ids(), scope.videos, scope.limit, f"{source.root} {source.split}")
    cues = kinds_of(scope.texts)
    tasks = (
        _task(video, cues, Pngs(predictions, scope.allow_missing)) for video in answers(asked, source, None, scope.allow_missing)
    )
    return _table(in_order(score_video, tasks, scope.processes), dataset, split)


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

    The answers are the dataset's where `root`, or the hint in the card, leads to it; else, and where the dataset has lost a
    video since, those that the caches hold. A video that failed in extraction and whose expressions nobody knows counts as
    one expression, "<video>". Raises like `evaluate_pngs`.
    """
    source, said = TrackSource(caches), SelectionCache(selections)
    check_cards(said, source)
    known = dataset_of(source, dataset, root, split)
    asked = chosen_videos(listed_videos(source, known), scope.videos, scope.limit, str(source.caches[0].path))
    rule = resolve_policy(said, policy)
    have, cues = set(said.video_ids()), kinds_of(scope.texts)

    def tasks() -> Iterator[Task]:
        for video in answers(asked, known, source if root is None else None, scope.allow_missing):
            drawn = Drawn()
            if isinstance(video, VideoAnswers):
                drawn = _drawn(video, source, said, have, rule, scope.allow_missing)
            yield _task(video, cues, drawn)

    names = (", ".join(sorted({getattr(card, name) for card in source.cards})) for name in ("dataset", "split"))
    return _table(in_order(score_video, tasks(), scope.processes), *names)


def _drawn(
    video: VideoAnswers,
    source: TrackSource,
    said: SelectionCache,
    have: set[str],
    rule: SelectionPolicy,
    allow_missing: bool,
) -> Drawn:
    """What the selections say of a video; only the masks of tracks that an expression chose are kept."""
    video_id, kept = video.video_id, selections_of(video, source, said, have, allow_missing)
    if not kept:
        return Drawn()
    tracks, picks = source.info(video_id).tracks, [rule(s) for s in kept]
    for s in kept:
        check_width(s, tracks if s.masks is None else s.masks.shape[0])
    wanted = np.unique(np.concatenate([np.zeros(0, np.intp), *(p for s, p in zip(kept, picks) if s.masks is None)]))
    masks, out = [source.masks(video_id, wanted.tolist())], {}
    for s, picked in zip(kept, picks):
        key = f"{video_id}/{s.expression_id}"
        if s.masks is None:
            out[key] = (0, tuple(np.searchsorted(wanted, picked).tolist()))
        else:
            out[key] = (len(masks), tuple(range(len(picked))))
            masks.append(s.masks.select(picked.tolist()))
    check_frames(video, masks[0], next(iter(out)))
    return Drawn(tuple(masks), out)


def _task(video: VideoAnswers | tuple[str, ...], cues: Callable[[Expression], str | None], predictions: Pngs | Drawn) -> Task:
    if not isinstance(video, VideoAnswers):
        return Task((), (), RleMasks.empty(0, 0, (1, 1)), (), predictions, video)
    asked = tuple(
        Asked(e.key, tuple(sorted(video.targets(e))), len(e.text.split()), video.kind(e), cues(e)) for e in video.expressions
    )
    annotated = tuple(np.flatnonzero(video.truth.annotated).tolist())
    return Task(video.frame_names, annotated, video.truth.masks, asked, predictions)


def _table(videos: Iterable[list[Row]], dataset: str, split: str) -> dict[str, Any]:
    scores = Scores()
    for rows in videos:
        for row in rows:
            scores.add(row.key, row.value, row.kind, row.facts, row.empty)
    return {"protocol": PROTOCOL, "dataset": dataset, "split": split, **scores.table()}
