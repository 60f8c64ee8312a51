"""One picture of all objects of a video that one annotator named, as the benchmark of Ref-DAVIS17 takes predictions.

ReferFormer's `inference_davis.py` keeps an object's probabilities of 0.5 and more, puts a background of 0.1 beside them and
gives each pixel to the largest. A cached mask is binary: its pixels have the probability of its selection's score. So where
objects overlap the larger score wins, of equal scores the lower object, as of equal probabilities there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets.ref_davis17 import RefDavis17
from rvos_cache.errors import InputError
from rvos_cache.mask_png import read_mask_png
from rvos_cache.store import SelectionCache
from rvos_cache.types import Selection
from rvos_select.data.caches import TrackSource
from rvos_select.merging.merge import check_cards, check_pair, merge_masks
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, resolve_policy


class MissingAnswerError(InputError):
    """An expression has no prediction."""


@dataclass(frozen=True)
class Answer:
    """The mask of one object. number: 1 to 254, its value in the picture; read: t -> (H, W) bool; score: in [0, 1]."""

    number: int
    read: Callable[[int], NDArray[np.bool_]]
    score: float = 0.0


@dataclass(frozen=True)
class Frames:
    """The frames of a video: T stems and their size (H, W)."""

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]


class Answers(Protocol):
    """Where predictions come from."""

    def answer(self, video: Frames, expression_id: str, number: int) -> Answer:
        """What the expression says object `number` is. Raises MissingAnswerError, and InputError for a damaged prediction."""


def label_map(answers: Sequence[Answer], t: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W): the number of the object with the largest score at each pixel, of equal scores the lower number; 0: none."""
    out = np.zeros(size, np.uint8)
    # Painted in rising order, so that the last, which stays, is the best.
    for answer in sorted(answers, key=lambda a: (a.score, -a.number)):
        out[answer.read(t)] = answer.number
    return out


def label_maps(answers: Sequence[Answer], video: Frames) -> Iterator[NDArray[np.uint8]]:
    """The label map of each frame."""
    return (label_map(answers, t, video.size) for t in range(len(video.frame_names)))


def annotators(dataset: RefDavis17, video_id: str) -> list[dict[int, str]]:
    """Object number -> expression id, of each annotator of a video. Raises InputError: the list of expressions is damaged."""
    out: list[dict[int, str]] = [{} for _ in range(dataset.annotators)]
    for expression in dataset.expressions(video_id):
        (target,) = expression.targets or ("",)
        number = int(target.removeprefix(f"{video_id}-"))
        out[dataset.annotator(video_id, expression.expression_id)][number] = expression.expression_id
    return out


class PngAnswers:
    """`<root>/<video>/<expression>/<frame>.png`, 0 and 255. PNGs hold no scores: where objects overlap the lower one wins."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{root}: no such folder of predictions; run rvos-select merge first")

    def answer(self, video: Frames, expression_id: str, number: int) -> Answer:
        """As Answers. That the PNGs are there is looked up here, the mask is read with its frame."""
        folder = self.root / video.video_id / expression_id
        paths = [folder / f"{name}.png" for name in video.frame_names]
        lost = next((path for path in paths if not path.is_file()), None)
        if lost is not None:
            raise MissingAnswerError(f"{lost}: the prediction is missing; run merge for it")
        return Answer(number, lambda t: read_mask_png(paths[t], video.size))


class SelectionAnswers:
    """Selections and the tracks that they choose from, merged in memory; the score is that of the best selected track.

    Without a threshold the best track of each expression answers, as the benchmark's methods do. Raises InputError: the caches
    are not those of the selections, or `decision` refuses the policy.
    """

    def __init__(self, selections: Path, caches: Sequence[Path], policy: PolicyOptions = DEFAULT_POLICY) -> None:
        self.source, self.said = TrackSource(caches), SelectionCache(selections)
        check_cards(self.said, self.source)
        self.rule = resolve_policy(self.said, policy, top1_unasked=True)
        self.have, self.held = set(self.said.video_ids()), dict[str, Selection]()
        self.video_id: str | None = None

    def answer(self, video: Frames, expression_id: str, number: int) -> Answer:
        """As Answers. The tracks of the latest video stay in memory."""
        self._load(video)
        if expression_id not in self.held:
            key = f"{video.video_id}/{expression_id}"
            raise MissingAnswerError(f"{self.said.path}: no selection of expression {key}; extract and predict its video")
        selection = self.held[expression_id]
        merged = merge_masks(selection, self.masks, self.rule)
        return Answer(number, lambda t: merged.decode(0, t), float(selection.scores[self.rule(selection)].max(initial=0)))

    def _load(self, video: Frames) -> None:
        if self.video_id == video.video_id:
            return
        self.video_id, self.held = None, {}
        if video.video_id not in self.source.of:
            raise MissingAnswerError(self.source.absence(video.video_id))
        info = self.source.info(video.video_id)
        if (info.frame_names, info.size) != (video.frame_names, video.size):
            raise InputError(
                f"{self.source.caches[0].path}, video {video.video_id}: holds {info.frames} frames of {info.size}, the dataset "
                f"has {len(video.frame_names)} of {video.size}; extract the video again from this dataset"
            )
        if video.video_id in self.have:
            check_pair(self.said, self.source, video.video_id)
            self.held = {s.expression_id: s for s in self.said.selections(video.video_id)}
            self.masks = self.source.masks(video.video_id)
        self.video_id = video.video_id
