"""What must be scored: the expressions of a split, or of the videos asked for, with their ground truth."""

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
class VideoAnswers:
    """One video to score. kind: expression -> its kind, None where the dataset has none."""

    video_id: str
    frame_names: tuple[str, ...]
    expressions: tuple[Expression, ...]
    truth: GroundTruth
    kind: Callable[[Expression], str | None]

    def targets(self, expression: Expression) -> list[int]:
        """Positions of the expression's objects in `truth`; none: no target. Raises InputError when they are hidden."""
        if expression.targets is None:
            raise InputError(f"expression {expression.key}: its answers are hidden; score a split that shows them")
        return self.truth.indices(expression.targets)

    def union(self, expression: Expression) -> RleMasks:
        """The OR of the expression's objects, (1, T); no target: empty. Raises InputError when they are hidden."""
        return self.truth.masks.union(self.targets(expression))


def chosen_videos(known: Sequence[str], videos: Sequence[str], limit: int | None, where: str) -> tuple[str, ...]:
    """`known`, or those of it in `videos`, or its first `limit`. Raises InputError for a video that is not known."""
    lost = [v for v in videos if v not in set(known)]
    if lost:
        raise InputError(f"{where}: no video {lost[0]}; the first there is {known[0] if known else '(none)'}")
    picked = [v for v in known if v in set(videos)] if videos else list(known)
    return tuple(picked[:limit])


def from_dataset(dataset: Dataset, video_id: str) -> VideoAnswers:
    """The answers that the dataset has. Raises InputError when its split hides them or the video cannot be read."""
    where = f"{dataset.root} {dataset.split}"
    if not dataset.has_ground_truth:
        raise InputError(f"{where}: the split hides its answers; score another split, or submit to the benchmark's server")
    kind = getattr(dataset, "kind", None)
    truth = dataset.ground_truth(video_id)
    if truth is None:
        raise InputError(f"{where}: no ground truth of video {video_id}; the split is damaged")
    return VideoAnswers(
        video_id,
        dataset.video(video_id).frame_names,
        dataset.expressions(video_id),
        truth,
        lambda e: None if kind is None else kind(e.video_id, e.expression_id),
    )


def from_cache(cache: TrackCache, video_id: str) -> VideoAnswers:
    """The answers that a tracks cache holds itself. Raises InputError when its split hides them."""
    info = cache.info(video_id)
    return VideoAnswers(video_id, info.frame_names, info.expressions, cache.ground_truth(video_id), lambda _: None)


def dataset_of(source: TrackSource, dataset: str | None, root: Path | None, split: str | None) -> Dataset | None:
    """The dataset of the caches at `root`, or where the hint in their card still leads to it.

    Raises InputError when the caches are of another `dataset` or `split`, or `root` does not hold theirs.
    """
    parts = sorted({(card.dataset, card.split) for card in source.cards})
    for name, given, held in (("dataset", dataset, parts[0][0]), ("split", split, parts[0][1])):
        if given is not None and (given != held or len(parts) > 1):
            have = ", ".join(" ".join(part) for part in parts)
            raise InputError(f"{source.caches[0].path}: holds {have}, not {name} {given}; give the cache of that {name}")
    if root is not None and len(parts) > 1:
        raise InputError(f"--root {root}: caches of several splits were given; leave --root out to use their own answers")
    if root is not None:
        return open_dataset(parts[0][0], root, parts[0][1])
    return find_dataset(source.card) if len(parts) == 1 else None


def listed_videos(source: TrackSource, known: Dataset | None) -> tuple[str, ...]:
    """Every video to score: those of the dataset, else those that the caches hold or failed to hold."""
    if known is not None:
        return known.video_ids()
    found = {*source.of, *source.holes}
    for cache in source.caches:
        found |= set(failed_videos(cache))
    return tuple(sorted(found))


def answers(
    asked: Sequence[str], known: Dataset | None, own: TrackSource | None, allow_missing: bool
) -> Iterator[VideoAnswers | tuple[str, ...]]:
    """The answers of each video of `asked`: the dataset's, else the caches' own.

    Where neither has them an InputError, or, with `allow_missing`, the keys of its expressions, which score 0.
    """
    for video_id in asked:
        lost = InputError(f"video {video_id}: it failed in extraction; extract it again, or give --allow-missing to score it 0")
        found: VideoAnswers | None = None
        if known is not None:
            try:
                found = from_dataset(known, video_id)
            except InputError as error:
                lost = error
        cache = None if own is None else own.answering(video_id)
        if found is None and cache is not None:
            found = from_cache(cache, video_id)
        if found is not None:
            yield found
        elif allow_missing and (known is None or known.has_ground_truth):
            yield _keys(known, video_id)
        else:
            raise lost


def _keys(known: Dataset | None, video_id: str) -> tuple[str, ...]:
    """The expressions of a video that cannot be read, as "<video>/<expression>"; "<video>" when nobody knows them."""
    listed = getattr(known, "expression_ids", None)
    try:
        ids = () if listed is None else listed(video_id)
    except InputError:
        ids = ()
    return tuple(f"{video_id}/{i}" for i in ids) or (video_id,)
