"""The features that a cache of DVIS++ stores, and their bytes, which are known before extraction.

Letters: N tracks, T frames, A annotated objects.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rvos_cache.soft_overlap import SOFT_SPECS
from rvos_cache.trackers.dvis.settings import DvisSettings
from rvos_cache.trackers.mask2former.planning import MASK_BYTES, OBJECTS, array_bytes
from rvos_cache.trackers.planned import PlannedBytes, Size
from rvos_cache.types import FeatureSpec


@dataclass(frozen=True)
class FeatureSizes:
    """Sizes that the checkpoint determines.

    queries: of a frame; channels: of a frame query; token_channels: of a track's token; mask_channels: of the mask features; classes:
    without the void class; rows: of the array `logits`.
    """

    queries: int
    channels: int
    token_channels: int
    mask_channels: int
    classes: int
    rows: int


def feature_specs(settings: DvisSettings, sizes: FeatureSizes) -> tuple[FeatureSpec, ...]:
    """The features of a cache.

    logits: of all queries of the first frame, the void class last: the refiner's and the time-mean of the tracker's, or with
    generator=frames the time-mean of the frames'; query: the query of the first frame that each track has; f_mask_pooled: mask
    features, averaged; raw: frame queries before the last LayerNorm, in the segmenter's order.
    """
    specs = [
        FeatureSpec("logits", (sizes.rows, sizes.queries, sizes.classes + 1), "float32"),
        FeatureSpec("query", ("N",), "int32"),
    ]
    if settings.pool:
        specs.append(FeatureSpec("f_mask_pooled", ("T", settings.pool, settings.pool, sizes.mask_channels), by_frame=True))
    if settings.keep_raw:
        specs.append(FeatureSpec("raw", ("T", sizes.queries, sizes.channels)))
    return tuple(specs)


def video_bytes(settings: DvisSettings, sizes: FeatureSizes, frames: int) -> dict[str, int]:
    """Bytes of each array of a video of `frames` frames: its features, measurements, tokens, presence and masks.

    Exact if the video has `max_tracks` tracks and OBJECTS objects, except for the masks, whose size is an average.
    """
    n = min(settings.max_tracks, sizes.queries)
    letters = {"T": frames, "N": n, "A": OBJECTS}
    tokens = FeatureSpec("tokens", ("N", "T", sizes.token_channels))
    arrays = {spec.name: array_bytes(spec, letters) for spec in (*feature_specs(settings, sizes), *SOFT_SPECS, tokens)}
    return {**arrays, "presence": 2 * n * frames, "mask_rle": MASK_BYTES * n * frames}


def planned_bytes(settings: DvisSettings, sizes: FeatureSizes, videos: Iterable[Size]) -> PlannedBytes:
    """Bytes of a cache of `videos` under the settings, and under some others of max_tracks and pool."""
    frames = [size[1] for size in videos]
    counts = sorted({count for count in (20, 50, 100) if count <= sizes.queries} | {settings.max_tracks})
    pools = sorted({0, settings.pool}, reverse=True)
    sizes_of: dict[str, int] = {}
    for count in counts:
        for pool in pools:
            other = settings.model_copy(update={"max_tracks": count, "pool": pool})
            sizes_of[_name(other)] = sum(sum(video_bytes(other, sizes, t).values()) for t in frames)
    return PlannedBytes("", _name(settings), sizes_of)


def _name(settings: DvisSettings) -> str:
    return f"max_tracks={settings.max_tracks} pool={settings.pool}"
