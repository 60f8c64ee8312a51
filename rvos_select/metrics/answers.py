"""What must be scored: the expressions of a split, or of the videos asked for, with their ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.types import Expression, GroundTruth
from rvos_select.caches import TrackSource


@dataclass(frozen=True)
class VideoAnswers:
    """One video to score. kind: expression -> its kind, None where the dataset has none."""

    video_id: str
    frame_names: tuple[str, ...]
    expressions: tuple[Expression, ...]
    truth: GroundTruth
    kind: Callable[[Expression], str | None]

    def union(self, expression: Expression) -> RleMasks:
        """The OR of the expression's objects, (1, T); no target: empty. Raises InputError when they are hidden."""
        if expression.targets is None:
            raise InputError(f"expression {expression.key}: its answers are hidden; score a split that shows them")
        return self.truth.masks.union(self.truth.indices(expression.targets))


def chosen_videos(known: Sequence[str], videos: Sequence[str], limit: int | None, where: str) -> tuple[str, ...]:
    """`known`, or those of it in `videos`, or its first `limit`. Raises InputError for a video that is not known."""
    lost = [v for v in videos if v not in set(known)]
    if lost:
        raise InputError(f"{where}: no video {lost[0]}; the first there is {known[0] if known else '(none)'}")
    picked = [v for v in known if v in set(videos)] if videos else list(known)
    return tuple(picked[:limit])


def from_dataset(dataset: Dataset, videos: Sequence[str] = (), limit: int | None = None) -> Iterator[VideoAnswers]:
    """The answers of a dataset's split. Raises InputError when the split hides them."""
    where = f"{dataset.root} {dataset.split}"
    if not dataset.has_answers:
        raise InputError(f"{where}: the split hides its answers; score another split, or submit to the benchmark's server")
    kind = getattr(dataset, "kind", None)
    for video_id in chosen_videos(dataset.video_ids(), videos, limit, where):
        truth = dataset.ground_truth(video_id)
        if truth is None:
            raise InputError(f"{where}: no ground truth of video {video_id}; the split is damaged")
        names = dataset.video(video_id).frame_names
        yield VideoAnswers(
            video_id,
            names,
            dataset.expressions(video_id),
            truth,
            lambda e: None if kind is None else kind(e.video_id, e.expression_id),
        )


def from_caches(source: TrackSource, videos: Sequence[str] = (), limit: int | None = None) -> Iterator[VideoAnswers]:
    """The answers that the tracks caches hold themselves."""
    for video_id in chosen_videos(source.video_ids(), videos, limit, str(source.caches[0].path)):
        info = source.info(video_id)
        yield VideoAnswers(video_id, info.frame_names, info.expressions, source.ground_truth(video_id), lambda _: None)


def of_caches(
    source: TrackSource,
    dataset: str | None,
    root: Path | None,
    split: str | None,
    videos: Sequence[str],
    limit: int | None,
) -> Iterator[VideoAnswers]:
    """The answers for tracks caches: of the dataset where `root`, or the hint in the card, leads to it, else their own.

    Only the dataset knows its expression kinds and the videos that no extraction has tried. Raises InputError when
    `dataset` or `split` is not the caches', or when a `root` that was given does not hold them.
    """
    parts = sorted({(card.dataset, card.split) for card in source.cards})
    for name, given, held in (("dataset", dataset, parts[0][0]), ("split", split, parts[0][1])):
        if given is not None and (given != held or len(parts) > 1):
            have = ", ".join(" ".join(part) for part in parts)
            raise InputError(f"{source.caches[0].path}: holds {have}, not {name} {given}; give the cache of that {name}")
    if len(parts) == 1:
        hint = root if root is not None else Path(source.card.root) if source.card.root else None
        if hint is not None and (root is not None or hint.is_dir()):
            yield from from_dataset(open_dataset(*_order(parts[0], hint)), videos, limit)
            return
    elif root is not None:
        raise InputError(f"--root {root}: caches of several splits were given; leave --root out to use their own answers")
    yield from from_caches(source, videos, limit)
    if not videos and limit is None:
        failed = sorted(set(source.failures()) - set(source.video_ids()))
        if failed:
            raise InputError(
                f"{source.caches[0].path}: video {failed[0]} failed in extraction; extract it again, or give --root and "
                "--allow-missing to score it 0"
            )


def _order(part: tuple[str, str], root: Path) -> tuple[str, Path, str]:
    return part[0], root, part[1]
