"""The cache format. One cache per (dataset, split, settings): a `.zarr` folder with one Zarr v3 group per video.

    <cache>.zarr/
      card.json                what this cache is; written once, first, with a digest of itself
      .staging/                work in progress, removed when its process is dead
      failures.jsonl           one line per failed video
      videos/<video>/          published by one rename, so a present video is complete
        zarr.json              the group's attributes
        <array>/...            each chunk is followed by its crc32c; masks are encoded by mask_codec.py
        digests.json           the digest of every file above and of the content, written last, with a digest of itself

A cache may also be stored in an object store, where nothing can be renamed: see object_backend.py.
The arrays of each kind of cache are listed at the top of tracks.py, text.py and selections.py.
"""

from rvos_cache.store.backend import Backend
from rvos_cache.store.card import PROVENANCE_FIELDS, Card, provenance, read_card
from rvos_cache.store.checksum import canonical, digest
from rvos_cache.store.paths import default_folder, pooled_path, text_path, tracks_path
from rvos_cache.store.reader import Cache, VideoFolder
from rvos_cache.store.selections import SelectionCache, SelectionInfo, SelectionRecord, write_selections
from rvos_cache.store.text import TextCache, TextRecord, write_text
from rvos_cache.store.tracks import TrackCache, TrackInfo, TrackRecord, write_tracks
from rvos_cache.store.uri import format_uri, open_backend
from rvos_cache.store.verify import content_digest, leftovers, open_cache, verify
from rvos_cache.store.writer import CacheWriter

__all__ = [
    "PROVENANCE_FIELDS", "Backend", "Cache", "CacheWriter", "Card", "SelectionCache", "SelectionInfo", "SelectionRecord",
    "TextCache", "TextRecord", "TrackCache", "TrackInfo", "TrackRecord", "VideoFolder", "canonical", "content_digest",
    "default_folder", "digest", "format_uri", "leftovers", "open_backend", "open_cache", "pooled_path", "provenance", "read_card",
    "text_path", "tracks_path", "verify", "write_selections", "write_text", "write_tracks",
]  # fmt: skip
