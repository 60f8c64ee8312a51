"""Label maps: one picture of all objects that an annotator of a video names, as the benchmark of Ref-DAVIS17 reads predictions.

ReferFormer's `inference_davis.py` keeps an object's probabilities of 0.5 and more, adds a background of 0.1 and gives each pixel
to the largest. A cached mask is binary: here its pixels have the score of its selection as probability. So where objects
overlap the larger score wins, of equal scores the lower object number, as for equal probabilities in that code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import read_mask_png
from rvos_cache.store import SelectionCache
from rvos_cache.types import Selection
from rvos_select.data.bound import check_cards, check_same_tracks
from rvos_select.data.caches import TrackSource
from rvos_select.merging.merge import merge_masks
from rvos_select.merging.policy import DEFAULT_POLICY, PolicyOptions, resolve_policy
from rvos_select.paths import PathLike, Paths


class MissingPredictionError(InputError):
    """An expression has no prediction."""


@dataclass(frozen=True)
class Answer:
    """The predicted mask of one object. number: 1 to 254, its value in label maps; read: t -> (H, W) bool; score: in [0, 1]."""

    number: int
    read: Callable[[int], NDArray[np.bool_]]
    score: float = 0.0


@dataclass(frozen=True)
class Frames:
    """The frames of a video. frame_names: (T,) stems; size: (H, W)."""

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]


class Predictions(Protocol):
    """Predicted masks of a split, from files or from a cache."""

    def predict(self, video: Frames, expression_id: str, number: int) -> Answer:
        """The prediction of an expression as object `number`.

        Raises MissingPredictionError, and InputError for a damaged prediction.
        """


def label_map(answers: Sequence[Answer], t: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W): the number of the object with the largest score at each pixel, of equal scores the lower number; 0: none."""
    labels = np.zeros(size, np.uint8)
    # In ascending order of scores: the last object written to a pixel is the best.
    for answer in sorted(answers, key=lambda a: (a.score, -a.number)):
        labels[answer.read(t)] = answer.number
    return labels


def label_maps(answers: Sequence[Answer], video: Frames) -> Iterator[NDArray[np.uint8]]:
    """The label map of each frame."""
    return (label_map(answers, t, video.size) for t in range(len(video.frame_names)))


class PngPredictions:
    """`<root>/<video>/<expression>/<frame>.png`, 0 and 255. PNGs have no scores: where objects overlap the lower number wins.

    Raises InputError when `root` is not a folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{root}: no such folder of predictions; run rvos-select merge first")

    def predict(self, video: Frames, expression_id: str, number: int) -> Answer:
        """As `Predictions.predict`. This checks that the PNGs exist; each is read with its frame."""
        folder = self.root / video.video_id / expression_id
        paths = [folder / f"{name}.png" for name in video.frame_names]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing is not None:
            raise MissingPredictionError(f"{missing}: the prediction is missing; run merge for it")
        return Answer(number, lambda t: read_mask_png(paths[t], video.size))


class SelectionPredictions:
    """Selections and their tracks, merged in memory; the score is that of the best selected track.

    Without a threshold the best track of each expression is selected, as the benchmark's methods do. Raises InputError: the
    caches are not those of the selections, or `resolve_policy` raises it.
    """

    def __init__(self, selections: PathLike, caches: Paths, options: PolicyOptions = DEFAULT_POLICY) -> None:
        self.tracks, self.cache = TrackSource(caches), SelectionCache(Path(selections))
        check_cards(self.cache, self.tracks)
        self.policy = resolve_policy(self.cache, options, top1_by_default=True)
        self.video_ids = set(self.cache.video_ids())
        # Of the latest video.
        self.video_id: str | None = None
        self.selections: dict[str, Selection] = {}

    def predict(self, video: Frames, expression_id: str, number: int) -> Answer:
        """As `Predictions.predict`. The tracks of the latest video stay in memory."""
        self._load(video)
        if expression_id not in self.selections:
            key = f"{video.video_id}/{expression_id}"
            raise MissingPredictionError(f"{self.cache.path}: no selection of expression {key}; extract and predict its video")
        selection = self.selections[expression_id]
        merged = merge_masks(selection, self.masks, self.policy)
        return Answer(number, lambda t: merged.decode(0, t), float(selection.scores[self.policy(selection)].max(initial=0)))

    def _load(self, video: Frames) -> None:
        if self.video_id == video.video_id:
            return
        self.video_id, self.selections = None, {}
        if video.video_id not in self.tracks.caches_of:
            raise MissingPredictionError(self.tracks.missing_line(video.video_id))
        info = self.tracks.info(video.video_id)
        if (info.frame_names, info.size) != (video.frame_names, video.size):
            raise InputError(
                f"{self.tracks.caches[0].path}, video {video.video_id}: holds {info.frames} frames of {info.size}, the dataset "
                f"has {len(video.frame_names)} of {video.size}; extract the video again from this dataset"
            )
        if video.video_id in self.video_ids:
            check_same_tracks(self.cache, self.tracks, video.video_id)
            self.selections = {s.expression_id: s for s in self.cache.selections(video.video_id)}
            self.masks = self.tracks.masks(video.video_id)
        self.video_id = video.video_id
