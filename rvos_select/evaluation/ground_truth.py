"""The ground truth to score against: of a dataset's split, or of tracks caches that hold it themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction import failed_videos, find_dataset
from rvos_cache.masks import RleMasks
from rvos_cache.store import TrackCache
from rvos_cache.types import Expression, GroundTruth
from rvos_select.data.caches import TrackSource


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video to score. kind: expression -> its kind, None where the dataset has no kinds."""

    video_id: str
    frame_names: tuple[str, ...]
    expressions: tuple[Expression, ...]
    truth: GroundTruth
    kind: Callable[[Expression], str | None]

    def targets(self, expression: Expression) -> list[int]:
        """Indices of the expression's objects in `truth`; empty: no target. Raises InputError when they are hidden."""
        if expression.targets is None:
            raise InputError(f"expression {expression.key}: its ground truth is hidden; score a split that has it")
        return self.truth.indices(expression.targets)

    def union(self, expression: Expression) -> RleMasks:
        """The OR of the expression's objects, (1, T); no target: empty. Raises InputError when they are hidden."""
        return self.truth.masks.union(self.targets(expression))


@dataclass(frozen=True)
class UnreadableVideo:
    """A video to score whose ground truth cannot be read: its expressions score 0.

    keys: of its expressions, "<video>/<expression>"; "<video>" alone where they are not known.
    """

    video_id: str
    keys: tuple[str, ...]


def select_videos(video_ids: Sequence[str], requested: Sequence[str], limit: int | None, location: str) -> tuple[str, ...]:
    """The first `limit` of `video_ids`, or of those among `requested` where any are.

    Raises InputError, which begins with `location`, for a requested video that is not in `video_ids`.
    """
    unknown = [v for v in requested if v not in set(video_ids)]
    if unknown:
        raise InputError(
            f"{location}: no video {unknown[0]}; the first of its videos is {video_ids[0] if video_ids else '(none)'}"
        )
    selected = [v for v in video_ids if v in set(requested)] if requested else list(video_ids)
    return tuple(selected[:limit])


def from_dataset(dataset: Dataset, video_id: str) -> AnnotatedVideo:
    """A video with the dataset's ground truth. Raises InputError when the split hides it or the video cannot be read."""
    location = f"{dataset.root} {dataset.split}"
    if not dataset.has_ground_truth:
        raise InputError(
            f"{location}: the split hides its ground truth; score another split, or submit to the benchmark's server"
        )
    truth = dataset.ground_truth(video_id)
    if truth is None:
        raise InputError(f"{location}: no ground truth of video {video_id}; the split is damaged")
    return AnnotatedVideo(
        video_id,
        dataset.video(video_id).frame_names,
        dataset.expressions(video_id),
        truth,
        lambda e: dataset.kind(e.video_id, e.expression_id),
    )


def from_cache(cache: TrackCache, video_id: str) -> AnnotatedVideo:
    """A video with the ground truth of a tracks cache. Raises InputError when its split hides it."""
    info = cache.info(video_id)
    return AnnotatedVideo(video_id, info.frame_names, info.expressions, cache.ground_truth(video_id), lambda _: None)


def dataset_of(source: TrackSource, dataset: str | None, root: Path | None, split: str | None) -> Dataset | None:
    """The dataset of the caches at `root`, or at the root of their card; None where it is not there.

    Raises InputError when the caches are of another `dataset` or `split`, or `root` does not hold theirs.
    """
    parts = sorted({(card.dataset, card.split) for card in source.cards})
    for name, requested, stored in (("dataset", dataset, parts[0][0]), ("split", split, parts[0][1])):
        if requested is not None and (requested != stored or len(parts) > 1):
            listed = ", ".join(" ".join(part) for part in parts)
            raise InputError(f"{source.caches[0].path}: holds {listed}, not {name} {requested}; give the cache of that {name}")
    if root is not None and len(parts) > 1:
        raise InputError(
            f"--root {root}: caches of several splits were given; leave --root out to use the ground truth of the caches"
        )
    if root is not None:
        return open_dataset(parts[0][0], root, parts[0][1])
    return find_dataset(source.card) if len(parts) == 1 else None


def videos_of(source: TrackSource, dataset: Dataset | None) -> tuple[str, ...]:
    """Every video to score: those of the dataset, else those that the caches hold or that failed in extraction."""
    if dataset is not None:
        return dataset.video_ids()
    video_ids = {*source.caches_of, *source.incomplete}
    for cache in source.caches:
        video_ids |= set(failed_videos(cache))
    return tuple(sorted(video_ids))


def annotated_videos(
    video_ids: Sequence[str], dataset: Dataset | None, source: TrackSource | None, allow_missing: bool
) -> Iterator[AnnotatedVideo | UnreadableVideo]:
    """Each video with its ground truth: the dataset's, else the caches' own.

    Where neither has it: an InputError, or, with `allow_missing`, an UnreadableVideo.
    """
    for video_id in video_ids:
        fault = InputError(f"video {video_id}: it failed in extraction; extract it again, or give --allow-missing to score it 0")
        video: AnnotatedVideo | None = None
        if dataset is not None:
            try:
                video = from_dataset(dataset, video_id)
            except InputError as error:
                fault = error
        cache = None if source is None else source.ground_truth_cache(video_id)
        if video is None and cache is not None:
            video = from_cache(cache, video_id)
        if video is not None:
            yield video
        elif allow_missing and (dataset is None or dataset.has_ground_truth):
            yield UnreadableVideo(video_id, _expression_keys(dataset, video_id))
        else:
            raise fault


def _expression_keys(dataset: Dataset | None, video_id: str) -> tuple[str, ...]:
    """The expressions of a video that cannot be read, as "<video>/<expression>"; "<video>" where they are not known."""
    try:
        ids = () if dataset is None else dataset.expression_ids(video_id)
    except InputError:
        ids = ()
    return tuple(f"{video_id}/{i}" for i in ids) or (video_id,)
