"""Stage one: frozen trackers and text encoders run once over a dataset; their outputs are stored in Zarr caches.

    import rvos_cache as rc

    rc.extract("mevis", "data/mevis", "train", "flow", "tracks.zarr")
    rc.extract_text("mevis", "data/mevis", "train", "hashed", "words.zarr")
    cache = rc.TrackCache("tracks.zarr")

Paths may be text or `pathlib.Path`. Names are imported when they are first used, so that importing this package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "rvos_cache.datasets": ("Dataset", "dataset_faults", "open_dataset"),
    "rvos_cache.errors": ("InputError",),
    "rvos_cache.exchange.export_sola": ("export_sola",),
    "rvos_cache.exchange.import_masks": ("import_masks",),
    "rvos_cache.exchange.import_sola": ("import_sola",),
    "rvos_cache.exchange.mirror": ("mirror",),
    "rvos_cache.exchange.pool_clip": ("pool_clip",),
    "rvos_cache.exchange.relabel": ("relabel",),
    "rvos_cache.extraction": ("ExtractReport", "Plan", "engine_of", "extract", "extract_all", "extract_text", "plan"),
    "rvos_cache.masks": ("RleMasks",),
    "rvos_cache.settings": ("Settings",),
    "rvos_cache.shapes": ("write_shapes",),
    "rvos_cache.store": ("SelectionCache", "TextCache", "TrackCache", "content_digest", "open_cache", "verify"),
    "rvos_cache.text": ("TextEncoder",),
    "rvos_cache.trackers": ("Tracker",),
    "rvos_cache.types": (
        "VIDEO", "Expression", "FeatureSpec", "GroundTruth", "Overlap", "Selection", "TrackSet", "Video", "Words",
    ),
}  # fmt: skip
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}
_ALIASES = {"check": "dataset_faults"}

if TYPE_CHECKING:
    from rvos_cache.datasets import Dataset, dataset_faults, open_dataset
    from rvos_cache.datasets import dataset_faults as check
    from rvos_cache.errors import InputError
    from rvos_cache.exchange.export_sola import export_sola
    from rvos_cache.exchange.import_masks import import_masks
    from rvos_cache.exchange.import_sola import import_sola
    from rvos_cache.exchange.mirror import mirror
    from rvos_cache.exchange.pool_clip import pool_clip
    from rvos_cache.exchange.relabel import relabel
    from rvos_cache.extraction import ExtractReport, engine_of, extract, extract_all, extract_text
    from rvos_cache.extraction.plan import Plan, plan
    from rvos_cache.masks import RleMasks
    from rvos_cache.settings import Settings
    from rvos_cache.shapes import write_shapes
    from rvos_cache.store import SelectionCache, TextCache, TrackCache, content_digest, open_cache, verify
    from rvos_cache.text import TextEncoder
    from rvos_cache.trackers import Tracker
    from rvos_cache.types import VIDEO, Expression, FeatureSpec, GroundTruth, Overlap, Selection, TrackSet, Video, Words

__all__ = [
    "VIDEO", "Dataset", "Expression", "ExtractReport", "FeatureSpec", "GroundTruth", "InputError", "Overlap", "Plan", "RleMasks",
    "Selection", "SelectionCache", "Settings", "TextCache", "TextEncoder", "TrackCache", "TrackSet", "Tracker", "Video", "Words",
    "check", "content_digest", "dataset_faults", "engine_of", "export_sola", "extract", "extract_all", "extract_text",
    "import_masks", "import_sola", "mirror", "open_cache", "open_dataset", "plan", "pool_clip", "relabel", "verify",
    "write_shapes",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    source = _ALIASES.get(name, name)
    if source not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[source]), source)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
