"""Mirror a cache: the tracks of `<split>-mirror` from those of `<split>`, without tracking again.

Masks are flipped, left and right are swapped in the sentences, and the tracker's `mirrored_tokens` gives the tokens: only a
tracker whose tokens are documented numbers has it. For any other tracker, extract the split `<split>-mirror`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets.mirrored import SUFFIX, flipped, mirrored_expressions, mirrored_truth
from rvos_cache.errors import InputError
from rvos_cache.extraction import ExtractReport, write_videos
from rvos_cache.store import CacheWriter, TrackCache, TrackRecord, provenance, write_tracks
from rvos_cache.trackers import tracker_class

Flip = Callable[[NDArray[Any]], NDArray[Any]]
"""Tokens (N, T, C) -> the tokens of the same tracks in mirrored frames."""


def mirror(cache: Path | str, out: Path | str, jobs: int = 1) -> ExtractReport:
    """Write the mirror image `out` of the tracks cache `cache`; run again, it does what is left.

    Raises InputError: the tracker has no mirror image of its tokens or other features, its tracks depend on the sentences,
    or `out` is another cache.
    """
    source = TrackCache(cache)
    card = source.card
    flip: Flip | None = getattr(tracker_class(card.producer), "mirrored_tokens", None)
    if flip is None or card.feature_specs or card.measurement_specs or card.expressions_digest is not None:
        raise InputError(f"{cache}: the arrays of {card.producer} cannot be mirrored; extract split {card.split}{SUFFIX} instead")

    def write_video(writer: CacheWriter, video_id: str) -> int:
        record = mirrored_record(source.read(video_id.removesuffix(SUFFIX)), flip)
        write_tracks(writer, record, {"host": socket.gethostname()})
        return len(record.frame_names)

    # Not equal to a cache extracted from mirrored frames, in which the tracker may find other tracks.
    mirrored_card = card.model_copy(
        update={"split": card.split + SUFFIX, "extra": {**card.extra, "mirrored": True}, **provenance()}
    )
    video_ids = [video_id + SUFFIX for video_id in source.require_videos()]
    return write_videos(out, mirrored_card, video_ids, write_video, f"{card.producer} {mirrored_card.split}", jobs)


def mirrored_record(record: TrackRecord, flip: Flip) -> TrackRecord:
    """The mirror image of one video. Its overlap counts are unchanged."""
    tracks, width = record.tracks, record.size[1]
    boxes = tracks.prompt_box.copy()
    boxes[:, [0, 2]] = width - tracks.prompt_box[:, [2, 0]]
    return replace(
        record,
        video_id=record.video_id + SUFFIX,
        expressions=mirrored_expressions(record.expressions),
        tracks=replace(tracks, tokens=flip(tracks.tokens), masks=flipped(tracks.masks), prompt_box=boxes.astype(np.float32)),
        ground_truth=None if record.ground_truth is None else mirrored_truth(record.ground_truth),
    )
