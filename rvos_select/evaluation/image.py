"""mAP, overall IoU, mean IoU and P@K of single frames, as A2D-Sentences and JHMDB-Sentences are scored; RefCOCO's images too.

The dataset lists the frames, `samples(video_id)`; where it has no such list, every expression is scored in every annotated
frame. A selector's candidate masks in such a frame, empty ones too, are its
detections with their scores; the mask with the highest score is its answer. See `metrics.image_level`.
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
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions
from rvos_select.metrics.answers import VideoAnswers, answers, chosen_videos, dataset_of
from rvos_select.metrics.image_level import Detections, ImageScores, MapMode
from rvos_select.metrics.slices import Facts

OPTIONS = frozenset({"map_mode"})
PROTOCOL = "image"
Said = dict[str, tuple[RleMasks, NDArray[np.float32]]]
"""Key of an expression -> its masks (Q, T) and their scores (Q,); no key: the answer is missing."""


@dataclass(frozen=True)
class Task:
    """One video to score. samples: each with its expression's key; truths: key -> its mask (1, T).

    facts: key -> what is known of the expression, without `share`. Without truths the video cannot be read.
    """

    samples: tuple[tuple[str, Sample], ...]
    frame_names: tuple[str, ...] = ()
    truths: dict[str, RleMasks] | None = None
    facts: dict[str, Facts] = field(default_factory=dict)
    said: Said | None = None


@dataclass(frozen=True)
class Row:
    """One sample. found: None where the answer is missing; truth: pixels of the true mask."""

    image_id: str
    key: str
    found: Detections | None
    truth: int = 0
    facts: Facts | None = None


def score_pngs(folder: Path, allow_missing: bool, task: Task) -> list[Row]:
    """The samples of a video from PNGs: one mask with score 1 each. Raises InputError."""

    def found(key: str, sample: Sample, truth: RleMasks) -> Detections | None:
        path = folder / key / f"{task.frame_names[sample.t]}.png"
        raw = prediction_bytes(path, allow_missing)
        if raw is None:
            return None
        mask, true = decode_mask_png(path, raw, truth.size) > 0, truth.decode(0, sample.t)
        inter, area = (np.array([np.count_nonzero(m)]) for m in (mask & true, mask))
        return Detections(np.ones(1), inter, area, int(np.count_nonzero(true)))

    return _rows(task, found)


def score_masks(task: Task) -> list[Row]:
    """The samples of a video from the candidate masks of its selections."""

    def found(key: str, sample: Sample, truth: RleMasks) -> Detections | None:
        if task.said is None or key not in task.said:
            return None
        masks, scores = task.said[key]
        return Detections.count(masks, scores, truth, sample.t)

    return _rows(task, found)


def _rows(task: Task, found: Callable[[str, Sample, RleMasks], Detections | None]) -> list[Row]:
    if task.truths is None:
        return [Row(sample.image_id, key, None) for key, sample in task.samples]
    rows = []
    for key, sample in task.samples:
        truth = task.truths[key]
        area = int(truth.frames(sample.t, sample.t + 1).area()[0, 0])
        share = area / (truth.size[0] * truth.size[1]) if area else None
        rows.append(Row(sample.image_id, key, found(key, sample, truth), area, replace(task.facts[key], share=share)))
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

    Every sample in `scope` needs its PNG. Raises InputError that names the one that is absent.
    """
    folder = check_folder(Path(predictions))
    source = open_dataset(dataset, root, split)
    asked = chosen_videos(source.video_ids(), scope.videos, scope.limit, f"{source.root} {source.split}")
    kind = kinds_of(scope.texts)
    tasks = (task_of(video, source, kind) for video in answers(asked, source, None, scope.allow_missing))
    rows = in_order(partial(score_pngs, folder, scope.allow_missing), tasks, scope.processes)
    return table_of(rows, map_mode, dataset, split)


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
    """Scores of the candidates' masks with the selector's scores; nothing is merged, so any `policy` is refused.

    Which frames are scored only the dataset says: `root`, or the hint in the card, must lead to it. Raises like `evaluate_pngs`.
    """
    if policy != DEFAULT_POLICY:
        asked_for = "--threshold, --top1 and --empty"
        raise InputError(f"{selections}: every candidate counts with its score; leave {asked_for} out, see --map-mode")
    source, said = TrackSource(caches), SelectionCache(selections)
    check_cards(said, source)
    known = dataset_of(source, dataset, root, split)
    if known is None:
        raise InputError(f"{source.caches[0].path}: the dataset says which frames are scored, and is not at hand; give --root")
    asked = chosen_videos(known.video_ids(), scope.videos, scope.limit, str(source.caches[0].path))
    have, kind = set(said.video_ids()), kinds_of(scope.texts)

    def tasks() -> Iterator[Task]:
        for video in answers(asked, known, None, scope.allow_missing):
            found = None
            if isinstance(video, VideoAnswers):
                found = _said(video, source, said, have, scope.allow_missing)
            yield task_of(video, known, kind, found)

    return table_of(in_order(score_masks, tasks(), scope.processes), map_mode, known.name, known.split)


def _said(video: VideoAnswers, source: TrackSource, said: SelectionCache, have: set[str], allow_missing: bool) -> Said:
    """The candidates' masks and scores."""
    kept = selections_of(video, source, said, have, allow_missing)
    tracks = source.masks(video.video_id) if kept else RleMasks.empty(0, *video.truth.masks.shape[1:], video.truth.masks.size)
    out = {}
    for selection in kept:
        key, masks = f"{video.video_id}/{selection.expression_id}", tracks if selection.masks is None else selection.masks
        check_width(selection, masks.shape[0])
        check_frames(video, masks, key)
        picked = np.flatnonzero(selection.candidates)
        out[key] = (masks.select(picked.tolist()), selection.scores[picked])
    return out


def task_of(
    video: VideoAnswers | tuple[str, ...],
    known: Dataset,
    kind: Callable[[Expression], str | None] = lambda _: None,
    said: Said | None = None,
) -> Task:
    """The task of a video, or of one that cannot be read: then the keys of its expressions. Raises InputError."""
    if isinstance(video, VideoAnswers):
        samples, frames = _samples(known, video), len(video.frame_names)
        listed = {e.key: e for e in video.expressions}
        truths = {key: video.union(listed[key]) for key in dict.fromkeys(key for key, _ in samples)}
        facts = {k: Facts(len(e.text.split()), len(e.targets or ()), frames, None, kind(e)) for k, e in listed.items()}
        return Task(samples, video.frame_names, truths, facts, said)
    try:
        return Task(_samples(known, video))
    except InputError:
        # Nobody can say which frames of it are scored: each expression counts as one.
        return Task(_once(video))


def _samples(known: Any, video: VideoAnswers | tuple[str, ...]) -> tuple[tuple[str, Sample], ...]:
    """Expression and frame of each sample of a video, or of the expressions of one that cannot be read. Raises InputError."""
    if hasattr(known, "samples"):
        video_id = video.video_id if isinstance(video, VideoAnswers) else video[0].partition("/")[0]
        return tuple((f"{s.video_id}/{s.expression_id}", s) for s in known.samples(video_id))
    if not isinstance(video, VideoAnswers):
        return _once(video)
    frames = np.flatnonzero(video.truth.annotated).tolist()
    asked = [(e, t, f"{e.key}/{video.frame_names[t]}") for e in video.expressions for t in frames]
    return tuple((e.key, Sample(e.video_id, e.expression_id, t, image_id)) for e, t, image_id in asked)


def _once(keys: Sequence[str]) -> tuple[tuple[str, Sample], ...]:
    return tuple((key, Sample(key.partition("/")[0], key.partition("/")[2], 0, key)) for key in keys)


def table_of(videos: Iterable[list[Row]], map_mode: MapMode, dataset: str, split: str) -> dict[str, Any]:
    """The scores of the samples of each video, as `ImageScores.table` has them. Raises InputError when there is none."""
    scores = ImageScores(map_mode)
    of, facts = defaultdict[str, list[str]](list), dict[str, Facts | None]()
    for rows in videos:
        for row in rows:
            of[row.key].append(row.image_id)
            facts[row.image_id] = row.facts
            if row.found is None:
                scores.add_missing(row.image_id, row.truth)
            else:
                scores.add(row.image_id, row.found)
    return {"protocol": PROTOCOL, "dataset": dataset, "split": split, **scores.table(of, facts)}
