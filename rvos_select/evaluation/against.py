"""What predictions were scored against: where the ground truth lies, and a digest of that of each video."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvos_cache.datasets import Dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction import video_difference
from rvos_cache.identity import answers_digest, expressions_difference, frames_difference, truth_difference
from rvos_cache.store import TrackCache
from rvos_cache.system.counts import counted
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.ground_truth import AnnotatedVideo, UnreadableVideo

AGAINST = "against"
"""The key of scores as JSON has them: {"root", "ground_truth", "videos"}, see `Against.to_json`."""


@dataclass
class Against:
    """The ground truth that scores were computed from. root: of the dataset, None: the caches' own; videos: video -> digest."""

    root: Path | None
    videos: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset | None) -> Against:
        """That of a dataset, or, where it is None, of the caches."""
        return cls(None if dataset is None else dataset.root.absolute())

    def watch(self, videos: Iterable[AnnotatedVideo | UnreadableVideo]) -> Iterator[AnnotatedVideo | UnreadableVideo]:
        """The same videos; the digest of each is kept as it passes."""
        for video in videos:
            if isinstance(video, AnnotatedVideo):
                self.videos[video.video_id] = answers_digest(video.frame_names, video.expressions, video.truth)
            yield video

    def to_json(self) -> dict[str, Any]:
        """{"against": {"root": path or null, "ground_truth": digest of all videos, "videos": {video: digest}}}."""
        total = hashlib.blake2b(repr(sorted(self.videos.items())).encode(), digest_size=16).hexdigest()
        root = None if self.root is None else str(self.root)
        return {AGAINST: {"root": root, "ground_truth": total, "videos": self.videos}}


def against_line(scores: Mapping[str, Any]) -> str:
    """One line that says what `scores` were computed against; "" where they do not tell."""
    against = scores.get(AGAINST)
    if not against:
        return ""
    where = "that the caches hold (without kinds of sentences)" if against["root"] is None else f"in {against['root']}"
    name = " ".join(str(scores[key]) for key in ("dataset", "split") if key in scores)
    return f"scored against the ground truth of {name or 'the split'} {where}: {counted(len(against['videos']), 'video')}, " + (
        f"digest {against['ground_truth'][:12]}"
    )


def check_same_ground_truth(first: Mapping[str, Any], second: Mapping[str, Any], location: str) -> None:
    """Raises InputError, beginning with `location`, where two files of scores have a video with other ground truth."""
    videos = [scores.get(AGAINST, {}).get("videos", {}) for scores in (first, second)]
    changed = [video_id for video_id, digest in videos[0].items() if videos[1].get(video_id, digest) != digest]
    if changed:
        roots = " and ".join(str(scores[AGAINST]["root"] or "the caches") for scores in (first, second))
        raise InputError(
            f"{location}: {len(changed)} videos were scored against other sentences or masks (in {roots}), first {changed[0]}; "
            "evaluate both against the same data"
        )


def check_same_answers(source: TrackSource, dataset: Dataset, video: AnnotatedVideo) -> None:
    """Raises InputError when the dataset has other frames, sentences or masks of a video than its tracks were extracted from."""
    cache = source.ground_truth_cache(video.video_id)
    if cache is None:
        return
    info, truth = cache.info(video.video_id), video.truth
    difference = frames_difference((info.frame_names, info.size), (video.frame_names, truth.masks.size))
    difference = difference or expressions_difference(info.expressions, video.expressions)
    if difference is None and info.object_ids is not None:
        difference = truth_difference(cache.ground_truth(video.video_id), truth)
    _raise(cache, dataset, video.video_id, difference)


def check_same_videos(source: TrackSource, dataset: Dataset, video_ids: Iterable[str]) -> None:
    """As `check_same_answers`, of videos that are read from the dataset for it; one that cannot be read is left out."""
    for video_id in video_ids:
        cache = source.ground_truth_cache(video_id)
        if cache is not None:
            try:
                difference = video_difference(cache, dataset, video_id, frames=False)
            except InputError:
                continue
            _raise(cache, dataset, video_id, difference)


def _raise(cache: TrackCache, dataset: Dataset, video_id: str, difference: str | None) -> None:
    if difference is not None:
        raise InputError(
            f"{cache.path}, video {video_id}: extracted from other data than {dataset.root} holds: {difference}; give --root of the "
            "data it was extracted from, extract it again, or, where frames are the same, rvos-cache relabel"
        )
