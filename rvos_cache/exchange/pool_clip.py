"""Pool the features of a frozen CLIP under the masks of a cache: the same tracks, with three more features.

`clip_pool` (T, N, P) has each track in each frame, `clip_frame` (T, P) the whole frame, `clip_box` (T, N, 4) the tracks' boxes; see
`rvos_cache.clip.pooling`. They need the frames and the masks alone, so any tracker's cache can be pooled, and its tracks need not be
extracted again.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from rvos_cache.clip.pooling import BOX, CLIP, FRAME, NAMES, POOL, ClipPooling, PoolSettings
from rvos_cache.corruptions import corrupt_video
from rvos_cache.datasets import Dataset, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.extraction import ExtractReport, shard_of, write_videos
from rvos_cache.identity import frames_difference, frames_digest
from rvos_cache.settings import build
from rvos_cache.store import (
    CacheWriter,
    Card,
    TrackCache,
    TrackRecord,
    format_uri,
    open_backend,
    pooled_path,
    provenance,
    read_card,
    write_tracks,
)
from rvos_cache.system.progress import tracked
from rvos_cache.types import Video

SOURCE = "pooled"
"""The entry of a video's provenance with the content of the tracks that were pooled (`rvos_cache.store.content`)."""
CHUNK_BYTES = 72
"""Of a chunk without its values: its crc32c, and its name and digest in digests.json."""
ARRAY_BYTES = 700
"""Of an array without its chunks: its zarr.json, with its name and digest in digests.json, and half of what the video adds."""
CARD_BYTES = 600
"""Of what the card says of the pooling."""


@dataclass(frozen=True)
class PooledBytes:
    """Bytes of a pooled cache, known before anything is computed.

    videos, frames, tracks: that it will have; arrays: name -> bytes, "tracks" is what is copied from the cache.
    """

    videos: int
    frames: int
    tracks: int
    arrays: Mapping[str, int]

    @property
    def total(self) -> int:
        """Of the whole cache."""
        return sum(self.arrays.values())

    def check(self, budget: int) -> None:
        """Raises InputError if the cache needs more than `budget` bytes."""
        if self.total > budget:
            own = decimal(self.arrays[POOL], precision=2)
            raise InputError(
                f"the pooled cache needs {decimal(self.total, precision=2)}, of which {own} are {POOL}, the budget is "
                f"{decimal(budget, precision=2)}; pool a cache of fewer tracks or videos, or give more room"
            )


def pool_clip(
    cache: Path | str,
    out: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    root: Path | str | None = None,
    shard: str = "1/1",
    jobs: int = 1,
    budget: int | None = None,
) -> ExtractReport:
    """Write the tracks of `cache` with CLIP's pooled features to `out`, by default `<cache>-clip.zarr` beside it.

    overrides: values of PoolSettings, of which `checkpoint` is required; root: of the dataset, by default that of the card; shard:
    "i/n", every n-th video from the i-th; budget: largest number of bytes of the whole cache. Run again, it does what is left. A
    video whose frames have changed fails: it needs new tracks. Raises InputError: the cache is pooled already, the dataset is not
    there, the checkpoint cannot be loaded, the cache would exceed the budget, or `out` is another cache.
    """
    source = open_unpooled(cache)
    out = pooled_path(cache) if out is None else out
    if Path(out).resolve() == Path(cache).resolve():
        raise InputError(f"{out}: is the cache to pool; give another --out, a cache is never changed in place")
    dataset = open_dataset(source.card.dataset, Path(root or source.card.root), source.card.split)
    pooling = open_pooling(overrides)
    if budget is not None:
        pooled_bytes(source, pooling).check(budget)
    card = pooled_card(source.card, pooling).model_copy(update={"root": str(dataset.root.absolute()), **provenance()})
    video_ids = shard_of(source.require_videos(), shard)
    _check_same_tracks(out, card, source, video_ids)

    def write_video(writer: CacheWriter, video_id: str) -> int:
        record, video = source.read(video_id, by_frame=True), _frames(source, dataset, video_id)
        origin = {"host": socket.gethostname(), SOURCE: source.content(video_id)}
        write_tracks(writer, pooled_record(record, video, pooling), origin)
        return len(video)

    return write_videos(out, card, video_ids, write_video, f"clip {card.producer} {card.split}", jobs)


def open_pooling(overrides: Mapping[str, Any] | None) -> ClipPooling:
    """The frozen CLIP of the settings `overrides`. Raises InputError."""
    values = overrides or {}
    if "checkpoint" not in values:
        raise InputError(
            "pool-clip: which CLIP? give the folder that rvos-cache convert-clip wrote, or a CLIPModel: --set checkpoint=FOLDER"
        )
    return ClipPooling(build(PoolSettings, values, "pool-clip"))


def open_unpooled(cache: Path | str) -> TrackCache:
    """The tracks cache to pool. Raises InputError if it has no tracks, or is pooled already."""
    source = TrackCache(cache)
    if not source.card.channels:
        raise InputError(
            f"{format_uri(cache)}: tracker {source.card.producer} makes no tracks to pool; give a cache of one that does"
        )
    names = {spec["name"] for spec in source.card.feature_specs}
    if CLIP in source.card.extra or names & set(NAMES):
        pooled = source.card.extra.get(CLIP, {})
        raise InputError(
            f"{format_uri(cache)}: its tracks are pooled already ({pooled.get('checkpoint', 'with a CLIP that it does not name')}); "
            "pool the cache that it was made from"
        )
    return source


def pooled_card(card: Card, pooling: ClipPooling) -> Card:
    """The card of a cache whose tracks are pooled: that of its tracks, with the features, CLIP's digest and its settings."""
    specs = [*card.feature_specs, *(spec.to_json() for spec in pooling.feature_specs)]
    record = pooling.record()
    return card.model_copy(
        update={
            "feature_specs": specs,
            "weights": {**card.weights, **pooling.image.weights},
            "extra": {**card.extra, CLIP: record},
        }
    )


def unpooled_card(card: Card) -> Card:
    """The card of the tracks alone, the inverse of `pooled_card`."""
    pooled = card.extra[CLIP]
    return card.model_copy(
        update={
            "feature_specs": [spec for spec in card.feature_specs if spec["name"] not in NAMES],
            "weights": {name: value for name, value in card.weights.items() if value != pooled["image"]},
            "extra": {name: value for name, value in card.extra.items() if name != CLIP},
        }
    )


def pooled_record(record: TrackRecord, video: Video, pooling: ClipPooling) -> TrackRecord:
    """A video's record with the pooled features, which are computed while it is written."""
    tracks = record.tracks
    # In this order: clip_frame is known when clip_pool has been read.
    features = {**tracks.features, **pooling.features(video, tracks.masks)}
    return replace(record, tracks=replace(tracks, features=features))


def pooled_bytes(source: TrackCache, pooling: ClipPooling) -> PooledBytes:
    """The bytes that the pooled cache of `source` will have."""
    frames = tracks = cells = 0
    video_ids = source.require_videos()
    for video_id in tracked(video_ids, "plan"):
        info = source.info(video_id)
        frames, tracks, cells = frames + info.frames, tracks + info.tracks, cells + info.frames * info.tracks
    values, overhead = 2 * pooling.channels, CHUNK_BYTES * frames + ARRAY_BYTES * len(video_ids)
    arrays = {
        "tracks": source.backend.size() + CARD_BYTES,
        POOL: values * cells + overhead,
        FRAME: values * frames + overhead,
        BOX: 16 * cells + overhead,
    }
    return PooledBytes(len(video_ids), frames, tracks, arrays)


def _frames(source: TrackCache, dataset: Dataset, video_id: str) -> Video:
    """The frames that the tracks were extracted from. Raises InputError if they are others now."""
    video, info = dataset.video(video_id), source.info(video_id)
    if (corrupt := source.card.extra.get("corrupt")) is not None:
        video = corrupt_video(video, corrupt)
    difference = frames_difference((info.frame_names, info.size), (video.frame_names, video.size))
    if difference is None and info.frames_digest not in (None, frames_digest(video)):
        difference = "its frames are other pictures"
    if difference is not None:
        raise InputError(f"{source.path}, video {video_id}: {difference}; extract it again")
    return video


def _check_same_tracks(out: Path | str, card: Card, source: TrackCache, video_ids: Sequence[str]) -> None:
    """Raises InputError for a video that `out` holds already, if it was pooled from other tracks than `source` holds now."""
    if not open_backend(out).has_card() or read_card(out).differences(card):
        # Another card is an error of its own when `out` is opened for writing.
        return
    pooled = TrackCache(out)
    for video_id in sorted(set(pooled.video_ids()).intersection(video_ids)):
        folder = pooled.folder(video_id)
        if folder.attributes["provenance"].get(SOURCE) != source.content(video_id):
            raise InputError(
                f"{pooled.path}, video {video_id}: pooled from other tracks than {source.path} holds now; {folder.how_to_fix}, or "
                "pool into another --out"
            )
