"""One video of a run, in memory: what batches are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_cache.text.cues import DEFAULT_TAGGER, Tagger
from rvos_cache.types import Expression, GroundTruth, Overlap, Words
from rvos_select.data.bound import check_same_sentences
from rvos_select.data.caches import TrackSource, candidates
from rvos_select.data.cards import part_array
from rvos_select.data.features import MemoryArray, StoredFeature, load_feature, load_measurement
from rvos_select.data.labels import LabelRule, max_iou, target_indices
from rvos_select.data.pixels import PixelArray, open_pixels
from rvos_select.data.resident import VideoRows
from rvos_select.data.text_cues import CUE_PARTS
from rvos_select.data.texts import TextSource


@dataclass(frozen=True)
class VideoSample:
    """One video and its E expressions.

    tokens: (N, T, C) as stored; presence: (N, T); words: of each expression; candidates: bool (E, N); target: float (E, N) or
    None; set_name: the set it belongs to, "dataset/split"; size: (H, W) of the frames; objects: for each expression the
    positions of its objects, None without ground truth; expression_index: for each expression its position in the tracks cache,
    None where that does not know it; tagger: of the tags of the words.
    Where a selector requires them: features and measured, arrays in memory; frames, arrays read by frames; pixels; overlap, the
    counts of all tracks and objects; truth, the annotated objects; boxes, theirs: float64 (A, T, 4), see `Batch.boxes`.
    resident: where its tokens and words are on the device, None: they are copied there.
    """

    video_id: str
    tokens: Tensor
    presence: Tensor
    expressions: tuple[Expression, ...]
    words: tuple[Words, ...]
    candidates: Tensor
    target: Tensor | None
    set_name: str = ""
    size: tuple[int, int] = (0, 0)
    objects: tuple[tuple[int, ...], ...] | None = None
    expression_index: tuple[int | None, ...] = ()
    tagger: Tagger = DEFAULT_TAGGER
    features: Mapping[str, MemoryArray] = field(default_factory=dict)
    measured: Mapping[str, MemoryArray] = field(default_factory=dict)
    frames: Mapping[str, StoredFeature] = field(default_factory=dict)
    pixels: PixelArray | None = None
    overlap: Overlap | None = None
    truth: GroundTruth | None = None
    boxes: NDArray[np.float64] | None = None
    resident: VideoRows | None = None

    def with_rows(self, rows: Sequence[int]) -> VideoSample:
        """The sample with the expressions `rows` alone."""
        index = torch.tensor(rows, dtype=torch.long)
        return replace(
            self,
            expressions=tuple(self.expressions[row] for row in rows),
            words=tuple(self.words[row] for row in rows),
            candidates=self.candidates[index],
            target=None if self.target is None else self.target[index],
            objects=None if self.objects is None else tuple(self.objects[row] for row in rows),
            expression_index=tuple(self.expression_index[row] for row in rows) if self.expression_index else (),
            resident=None,
        )

    @cached_property
    def usable_frames(self) -> NDArray[np.intp]:
        """The frames, ascending, that are annotated and that every array read by frames holds. Raises ValueError without overlap."""
        if self.overlap is None:
            raise ValueError(f"video {self.video_id}: loaded without overlap counts, which tell the annotated frames")
        usable = self.overlap.annotated.copy()
        for feature in self.frames.values():
            usable[np.setdiff1d(np.arange(len(usable)), feature.frames)] = False
        return np.flatnonzero(usable)

    def visible_frames(self, row: int) -> NDArray[np.intp]:
        """The usable frames in which an object of the expression `row` is visible; all of them where it has no object."""
        usable = self.usable_frames
        assert self.overlap is not None and self.objects is not None
        objects = list(self.objects[row])
        return usable[np.any(self.overlap.gt_area[objects][:, usable] > 0, axis=0)] if objects else usable


def set_name(card: Card) -> str:
    """The set of a cache, "dataset/split"."""
    return f"{card.dataset}/{card.split}"


def label_thresholds(tracks: TrackSource, label_iou: float | None) -> dict[str, float]:
    """Cache -> mean IoU above which its tracks are positives: `label_iou`, or where that is None the threshold of its card.

    Caches without tracks have none. Raises InputError for a card without one.
    """
    thresholds = {}
    for cache in tracks.caches:
        if not cache.card.channels:
            continue
        threshold = label_iou or cache.card.label_iou
        if threshold is None:
            raise InputError(f"{cache.path}: its card gives no label threshold; --set label_iou=0.7 (strictly between 0 and 1)")
        thresholds[cache.path] = threshold
    return thresholds


def load_video(
    tracks: TrackSource,
    texts: TextSource,
    video_id: str,
    *,
    thresholds: Mapping[str, float] | None = None,
    requires: Sequence[str] = (),
    rule: LabelRule = max_iou,
) -> VideoSample:
    """One video from its caches. thresholds: make targets by `rule`, each cache's tracks at its own; None: no ground truth.

    Without thresholds the parts that need ground truth (overlap, truth, boxes, measured) are left out, as in a hidden split.
    Raises InputError when caches are damaged, do not fit together, or hide what the targets need.
    """
    info = tracks.info(video_id)
    expressions = texts.expressions(video_id)
    check_same_sentences(tracks, texts, video_id)
    prompting = {info.expressions[p].expression_id for p in info.prompt if p >= 0}
    unknown = prompting - {e.expression_id for e in expressions}
    if unknown:
        raise InputError(f"video {video_id}: the text cache lacks expression {min(unknown)}; extract its words again")
    rows = [candidates(info, e.expression_id) for e in expressions]
    target = objects = None
    if thresholds is not None:
        objects = tuple(tuple(target_indices(e, info.object_ids)) for e in expressions)
        target = _targets(tracks, video_id, objects, thresholds, rule)
    labelled = thresholds is not None
    parts = [part_array(name) for name in requires]
    kinds = {kind for kind, _ in parts}
    position = {e.expression_id: i for i, e in enumerate(info.expressions)}
    return VideoSample(
        video_id,
        torch.from_numpy(np.ascontiguousarray(tracks.tokens(video_id))),
        torch.from_numpy(np.ascontiguousarray(tracks.presence(video_id))),
        expressions,
        texts.words(video_id, with_ids="word_ids" in requires),
        torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, info.tracks, dtype=torch.bool),
        target,
        set_name=set_name(tracks.caches_of[video_id][0].card),
        size=info.size,
        objects=objects,
        expression_index=tuple(position.get(e.expression_id) for e in expressions),
        tagger=texts.tagger(video_id) if CUE_PARTS.keys() & set(requires) else DEFAULT_TAGGER,
        features={name: load_feature(tracks, video_id, name) for kind, name in parts if kind == "features"},
        measured={name: load_measurement(tracks, video_id, name) for kind, name in parts if kind == "measured" and labelled},
        frames={name: StoredFeature(tracks, video_id, name) for kind, name in parts if kind == "frames"},
        pixels=open_pixels(tracks, video_id) if "pixels" in kinds else None,
        overlap=tracks.overlap(video_id) if labelled and "overlap" in kinds else None,
        truth=tracks.ground_truth(video_id) if labelled and "truth" in kinds else None,
        boxes=tracks.ground_truth(video_id).masks.boxes() if labelled and "boxes" in kinds else None,
    )


def _targets(
    tracks: TrackSource, video_id: str, objects: Sequence[Sequence[int]], thresholds: Mapping[str, float], rule: LabelRule
) -> Tensor:
    """Targets float (E, N) of all tracks of the video. Raises InputError when a rule returns another shape."""
    parts = [np.zeros((len(objects), 0), np.float32)]
    for cache in tracks.caches_of[video_id]:
        if not cache.card.channels:
            continue
        overlap = cache.overlap(video_id)
        targets = np.asarray(rule(overlap, objects, thresholds[cache.path]), np.float32)
        if targets.shape != (expected := (len(objects), len(overlap.area))):
            raise InputError(f"the label rule returned targets {targets.shape}, expected (expressions, tracks) = {expected}")
        if not ((targets >= 0) & (targets <= 1)).all():
            wrong = targets[~((targets >= 0) & (targets <= 1))][0]
            raise InputError(f"video {video_id}: the label rule returned the target {wrong}, expected values from 0 to 1")
        parts.append(targets)
    return torch.from_numpy(np.concatenate(parts, 1))
