"""The selections of a video that is scored, checked against its tracks and its ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rvos_cache.errors import InputError
from rvos_cache.store import SelectionCache
from rvos_cache.types import Selection
from rvos_select.data.bound import check_cards, check_same_tracks
from rvos_select.data.caches import TrackSource
from rvos_select.evaluation.ground_truth import AnnotatedVideo


@dataclass(frozen=True)
class SelectedTracks:
    """A selections cache with the tracks caches that it was made of. video_ids: of the selections."""

    cache: SelectionCache
    source: TrackSource
    video_ids: frozenset[str]

    @classmethod
    def open(cls, selections: Path, caches: tuple[Path, ...] | list[Path]) -> SelectedTracks:
        """Raises InputError when the caches are not those of the selections."""
        source, cache = TrackSource(caches), SelectionCache(selections)
        check_cards(cache, source)
        return cls(cache, source, frozenset(cache.video_ids()))

    def of(self, video: AnnotatedVideo, allow_missing: bool) -> list[Selection]:
        """The selections of the video's expressions, in their order.

        Raises InputError for a missing video or, without `allow_missing`, a missing expression.
        """
        video_id = video.video_id
        if video_id not in self.source.caches_of and not allow_missing:
            raise InputError(f"{self.source.missing_line(video_id)}, or give --allow-missing to score it 0")
        selections: dict[str, Selection] = {}
        if video_id in self.video_ids and video_id in self.source.caches_of:
            check_same_tracks(self.cache, self.source, video_id)
            selections = {s.expression_id: s for s in self.cache.selections(video_id)}
        for expression in video.expressions:
            if expression.expression_id not in selections and not allow_missing:
                raise InputError(
                    f"{self.cache.path}: no selection of expression {expression.key}; extract and predict its video, or give "
                    "--allow-missing"
                )
        return [selections[e.expression_id] for e in video.expressions if e.expression_id in selections]
