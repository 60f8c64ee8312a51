"""Small caches that hold all that DeRVOS reads, of random numbers, with words of a tiny BEiT-3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiny_beit3 import WIDTH, write_tiny_beit3
from tiny_dervos import MAPS, SIDE

from rvos_cache.pretrained import weights_digest
from rvos_cache.soft_overlap import SOFT_SPECS
from rvos_cache.store import CacheWriter, TextCache, TextRecord, TrackCache, write_text, write_tracks
from rvos_cache.text.beit3 import load
from rvos_cache.types import FeatureSpec
from rvos_select.contracts.caches import WORD_CHANNELS, write_caches

PIXELS = 16 * SIDE
FEATURES = (
    FeatureSpec("rgb", ("T", PIXELS, PIXELS, 3), "uint8", by_frame=True),
    FeatureSpec("f_mask_pooled", ("T", SIDE, SIDE, MAPS), by_frame=True),
)
FRAMES = {"square": PIXELS, "resample": "bicubic"}


def write_dervos_caches(folder: Path, card: Mapping[str, Any] = {}, text: Mapping[str, Any] = {}) -> tuple[Path, Path]:
    """A tracks cache with frames, maps and soft sums, and a text cache of the tiny BEiT-3 in `folder`/beit3; their paths.

    card, text: fields of their cards that are replaced.
    """
    assert WORD_CHANNELS == WIDTH
    checkpoint = folder / "beit3"
    if not checkpoint.exists():
        write_tiny_beit3(checkpoint)
    raw = write_caches(folder / "raw", FEATURES, SOFT_SPECS)
    tracks, words = TrackCache(raw[0]), TextCache(raw[1])
    producer = {"settings": {"checkpoint": str(checkpoint)}, "weights": weights_digest(load(str(checkpoint)), str(checkpoint))}
    out = folder / "tracks.zarr", folder / "text.zarr"
    writers = (
        CacheWriter(out[0], tracks.card.model_copy(update={"settings": FRAMES, **card})),
        CacheWriter(out[1], words.card.model_copy(update={"producer": "beit3", **producer, **text})),
    )
    for video_id in tracks.video_ids():
        write_tracks(writers[0], tracks.read(video_id))
        write_text(writers[1], TextRecord(video_id, words.expressions(video_id), words.words(video_id)))
    return out
