"""What a cache keeps of the mask features, and what that costs, known before anything runs.

Letters as in head.py; R kept frames, r rank of the basis, N tracks. The profiles are P0, P1, P3 and P6 of the design
(systems/dmvs_dervos.md, 1.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, get_args

import numpy as np

from rvos_cache.trackers.vita.basis import Basis
from rvos_cache.trackers.vita.geometry import FrameGeometry
from rvos_cache.trackers.vita.head import HeadSizes
from rvos_cache.trackers.vita.settings import Profile, VitaSettings
from rvos_cache.trackers.vita.spool import Spool, SpooledFrames
from rvos_cache.types import FeatureSpec

MASK_BYTES = 104
"""Of a track's mask in a frame, as measured on real mask tracks."""
PLANNED_RANK = 64
"""Of a basis that is not fitted yet."""


def feature_specs(settings: VitaSettings, sizes: HeadSizes, rank: int = 0) -> tuple[FeatureSpec, ...]:
    """The features of a cache. rank: r of the basis, where the profile has one.

    q_f: raw frame queries; q_v, logits, mask_embed: the head's answer to the whole video; query: the video query of each
    track; f_mask: mask features of the kept frames or, in the basis, their coordinates; mask_frames: which frames those are;
    mask_basis: (Cm, r) turns a mask embedding e into coordinates, so that f_mask · (mask_basisᵀ e) are its mask logits.
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
    return tuple(specs + maps[settings.profile])


def mask_features(settings: VitaSettings, spool: Spool, basis: Basis | None) -> dict[str, Any]:
    """The features of `feature_specs` that hold mask features, from all of them, spool (T, h, w, Cm) float16."""
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
    """The frames whose mask features are kept, where the profile keeps any."""
    return range(0, frames, settings.keep_every if settings.profile == "frames" else 1)


def video_bytes(settings: VitaSettings, sizes: HeadSizes, size: tuple[int, int], frames: int, rank: int = 0) -> dict[str, int]:
    """Bytes of each array of a video of `frames` frames of `size` (H, W): all of its features, tokens, presence and masks.

    Exact for a video that fills `max_tracks`, but for the masks, whose size is what real tracks have on average.
    """
    n = min(settings.max_tracks, sizes.video_queries)
    h, w = FrameGeometry.of(size, settings.short_side, settings.long_side).cells
    letters = {"T": frames, "R": len(kept_frames(settings, frames)), "N": n, "h": h, "w": w}
    out = {spec.name: _bytes(spec, letters) for spec in feature_specs(settings, sizes, rank)}
    tokens = _bytes(FeatureSpec("tokens", ("N", "T", sizes.mask_channels)), letters)
    return {**out, "tokens": tokens, "presence": 2 * n * frames, "mask_rle": MASK_BYTES * n * frames}


def profile_bytes(
    settings: VitaSettings, sizes: HeadSizes, videos: Iterable[tuple[tuple[int, int], int]], rank: int = PLANNED_RANK
) -> dict[str, int]:
    """Bytes of all `videos`, each ((H, W), T), under every profile. rank: of the basis."""
    listed = list(videos)
    return {
        profile: sum(
            sum(video_bytes(settings.model_copy(update={"profile": profile}), sizes, size, frames, rank).values())
            for size, frames in listed
        )
        for profile in get_args(Profile)
    }


def _bytes(spec: FeatureSpec, letters: Mapping[str, int]) -> int:
    return prod(letters[d] if isinstance(d, str) else d for d in spec.dims) * np.dtype(spec.dtype).itemsize
