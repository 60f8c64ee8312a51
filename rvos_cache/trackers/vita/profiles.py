"""The features that a cache stores under each profile, and their size, which is known before extraction.

Letters as in head.py; Cm channels of the mask features, R stored frames, r rank of the basis, N tracks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import numpy as np

from rvos_cache.soft_overlap import SOFT_SPECS
from rvos_cache.trackers.mask2former.planning import MASK_BYTES, OBJECTS, array_bytes
from rvos_cache.trackers.mask2former.spool import Spool, SpooledFrames
from rvos_cache.trackers.vita.basis import Basis
from rvos_cache.trackers.vita.geometry import vita_geometry
from rvos_cache.trackers.vita.head import HeadSizes
from rvos_cache.trackers.vita.settings import Profile, VitaSettings
from rvos_cache.types import FeatureSpec

PLANNED_RANK = 64
"""Rank that is assumed for a basis that is not fitted yet."""


def feature_specs(settings: VitaSettings, sizes: HeadSizes, rank: int = 0) -> tuple[FeatureSpec, ...]:
    """The features of a cache. rank: r of the basis, if the profile has one.

    q_f: raw frame queries; q_v, logits, mask_embed: the head's output for the whole video; query: the video query of each track;
    f_mask: mask features of the stored frames or, under low_rank, their coordinates in the basis; mask_frames: the stored frames;
    mask_basis: (Cm, r) projects a mask embedding e, so that f_mask · (mask_basisᵀ e) are its mask logits; f_mask_pooled: mean mask
    features of pool x pool areas of the frame.
    """
    nv, cm = sizes.video_queries, sizes.mask_channels
    specs = [
        FeatureSpec("q_f", ("T", sizes.frame_queries, sizes.channels)),
        FeatureSpec("q_v", (nv, sizes.channels), "float32"),
        FeatureSpec("logits", (nv, sizes.classes + 1), "float32"),
        FeatureSpec("mask_embed", (nv, cm), "float32"),
        FeatureSpec("query", ("N",), "int32"),
    ]
    maps = {
        "exact": [FeatureSpec("f_mask", ("T", "h", "w", cm), by_frame=True)],
        "low_rank": [
            FeatureSpec("f_mask", ("T", "h", "w", rank), by_frame=True),
            FeatureSpec("mask_basis", (cm, rank), "float32"),
        ],
        "frames": [FeatureSpec("f_mask", ("R", "h", "w", cm), by_frame=True), FeatureSpec("mask_frames", ("R",), "int32")],
        "selection_only": [],
    }
    pooled = [FeatureSpec("f_mask_pooled", ("T", settings.pool, settings.pool, cm), by_frame=True)] if settings.pool else []
    return tuple(specs + maps[settings.profile] + pooled)


def measurement_specs(settings: VitaSettings) -> tuple[FeatureSpec, ...]:
    """The measurements of a cache."""
    return SOFT_SPECS if settings.pool else ()


def mask_features(settings: VitaSettings, spool: Spool, basis: Basis | None) -> dict[str, Any]:
    """The values of f_mask, mask_frames and mask_basis under the profile, from mask features `spool` (T, h, w, Cm) float16."""
    frames = kept_frames(settings, len(spool))
    if settings.profile == "selection_only":
        return {}
    if settings.profile == "frames":
        return {"f_mask": SpooledFrames(spool, frames, spool.shape[-1]), "mask_frames": np.array(frames, np.int32)}
    if settings.profile == "low_rank":
        assert basis is not None
        return {"f_mask": SpooledFrames(spool, frames, basis.rank, basis.coordinates), "mask_basis": basis.v}
    return {"f_mask": SpooledFrames(spool, frames, spool.shape[-1])}


def kept_frames(settings: VitaSettings, frames: int) -> range:
    """The frames whose mask features are stored, if the profile stores any."""
    return range(0, frames, settings.keep_every if settings.profile == "frames" else 1)


def video_bytes(settings: VitaSettings, sizes: HeadSizes, size: tuple[int, int], frames: int, rank: int = 0) -> dict[str, int]:
    """Bytes of each array of a video of `frames` frames of `size` (H, W): its features, measurements, tokens, presence and masks.

    Exact if the video has `max_tracks` tracks and OBJECTS objects, except for the masks, whose size is an average.
    """
    n = min(settings.max_tracks, sizes.video_queries)
    h, w = vita_geometry(size, settings.short_side, settings.long_side).cells()
    letters = {"T": frames, "R": len(kept_frames(settings, frames)), "N": n, "A": OBJECTS, "h": h, "w": w}
    specs = (*feature_specs(settings, sizes, rank), *measurement_specs(settings))
    out = {spec.name: array_bytes(spec, letters) for spec in specs}
    tokens = array_bytes(FeatureSpec("tokens", ("N", "T", sizes.mask_channels)), letters)
    return {**out, "tokens": tokens, "presence": 2 * n * frames, "mask_rle": MASK_BYTES * n * frames}


def profile_bytes(
    settings: VitaSettings, sizes: HeadSizes, videos: Iterable[tuple[tuple[int, int], int]], rank: int = PLANNED_RANK
) -> dict[str, int]:
    """Profile -> bytes of all `videos`, each ((H, W), T). rank: of the basis."""
    sizes_and_frames = list(videos)
    return {
        profile: sum(
            sum(video_bytes(settings.model_copy(update={"profile": profile}), sizes, size, frames, rank).values())
            for size, frames in sizes_and_frames
        )
        for profile in get_args(Profile)
    }
