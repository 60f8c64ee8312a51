"""The on-disk format. One cache per (dataset, split, settings): a `.zarr` folder, one Zarr v3 group per video.

    <cache>.zarr/
      card.json                what this cache is; written once, first, with a digest of itself
      .staging/                work in progress, swept when its process is dead
      failures.jsonl           one line per failed video
      videos/<video>/          published by one rename, so present means complete
        zarr.json              the group's attributes
        <array>/...            crc32c after every chunk; masks are packed before, see turns.py
        digests.json           the digest of every file above, written last, with a digest of itself

A cache may also lie in an object store, where nothing can be renamed: objects.py tells how it looks there.
The arrays of each kind stand at the top of tracks.py, text.py and selections.py.
"""

from rvos_cache.store.backend import Backend
from rvos_cache.store.card import FREE, Card, provenance, read_card
from rvos_cache.store.checksum import canonical, digest
from rvos_cache.store.folder_backend import sync
from rvos_cache.store.reader import Cache, VideoFolder
from rvos_cache.store.selections import SelectionCache, SelectionInfo, SelectionRecord, write_selections
from rvos_cache.store.text import TextCache, TextRecord, write_text
from rvos_cache.store.tracks import TrackCache, TrackInfo, TrackRecord, write_tracks
from rvos_cache.store.uri import format_uri, open_backend
from rvos_cache.store.verify import content_digest, leftovers, open_cache, verify, video_digest
from rvos_cache.store.writer import CacheWriter

__all__ = [
    "FREE", "Cache", "CacheWriter", "Card", "Backend", "SelectionCache", "SelectionInfo", "SelectionRecord", "TextCache",
    "TextRecord", "TrackCache", "TrackInfo", "TrackRecord", "VideoFolder", "canonical", "content_digest", "digest", "leftovers",
    "open_cache", "open_backend", "provenance", "read_card", "format_uri", "sync", "verify", "video_digest", "write_selections",
    "write_text", "write_tracks",
]  # fmt: skip
