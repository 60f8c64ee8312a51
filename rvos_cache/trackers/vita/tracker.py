"""The VITA tracker: frame queries and mask features of the frames, video queries, and the best of these as tracks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.settings import Settings
from rvos_cache.trackers.base import Tracker
from rvos_cache.trackers.mask2former.masks import largest, to_float16
from rvos_cache.trackers.mask2former.spool import Spool
from rvos_cache.trackers.planned import PlannedBytes, Size
from rvos_cache.trackers.vita.basis import Basis
from rvos_cache.trackers.vita.checkpoint import head_hash, load_vita
from rvos_cache.trackers.vita.geometry import vita_geometry
from rvos_cache.trackers.vita.head import VideoQueries
from rvos_cache.trackers.vita.profiles import PLANNED_RANK, feature_specs, mask_features, measurement_specs, profile_bytes
from rvos_cache.trackers.vita.settings import VitaSettings
from rvos_cache.trackers.vita.tracks import decode_queries, pooled_features, soft_measure
from rvos_cache.types import VIDEO, Expression, TrackSet, Video


class VitaTracker(Tracker):
    """The best video queries of a frozen VITA as tracks, with its features; no sentences, no ground truth.

    Everything is computed from features as stored, in float16: the head returns the stored `q_v` for a cache's `q_f`, and
    `f_mask` with the stored `mask_embed` gives the stored masks, whatever the profile stores.
    """

    Settings: type[Settings] = VitaSettings

    def __init__(self, settings: VitaSettings) -> None:
        self.settings = settings
        self.segmenter, self.head = load_vita(settings.checkpoint)
        self.channels = self.head.sizes.mask_channels
        self.basis = Basis.load(Path(settings.basis)) if settings.basis else None
        if self.basis and len(self.basis.w) != self.channels:
            raise InputError(
                f"{settings.basis}: the basis has {len(self.basis.w)} channels, {settings.checkpoint} has {self.channels}; "
                "fit it with the same checkpoint"
            )
        self.feature_specs = feature_specs(settings, self.head.sizes, self.basis.rank if self.basis else 0)
        self.measurement_specs = measurement_specs(settings)

    def weight_hashes(self) -> dict[str, str]:
        """Digests of Mask2Former, of the head and, if there is one, of the basis."""
        return {**self.segmenter.weight_hashes(), **head_hash(self.head), **(self.basis.weight_hash() if self.basis else {})}

    def planned_bytes(self, videos: Iterable[Size]) -> PlannedBytes:
        """Bytes of a cache of `videos` under every profile, computed without reading them."""
        rank = self.basis.rank if self.basis else min(PLANNED_RANK, self.channels)
        return PlannedBytes("profile", self.settings.profile, profile_bytes(self.settings, self.head.sizes, videos, rank))

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """The tracks of one video, best class score first, at most `max_tracks`."""
        geometry = self.geometry(video)
        q_f, f_mask = self.frame_features(video, geometry)
        queries = self.video_queries(q_f)
        best = best_queries(queries, self.settings.max_tracks)
        tracks = decode_queries(queries.mask_embed[0, best], f_mask, geometry)
        visible = np.flatnonzero(tracks.masks.area().any(1))
        tracks, n = tracks.select(visible), len(visible)
        frames, boxes = largest(tracks.masks)
        features: Mapping[str, Any] = {
            "q_f": q_f,
            "q_v": queries.q_v[0].cpu().numpy(),
            "logits": queries.logits[0].cpu().numpy(),
            "mask_embed": queries.mask_embed[0].cpu().numpy(),
            "query": best[visible].astype(np.int32),
            **mask_features(self.settings, f_mask, self.basis),
        }
        measure = None
        if pool := self.settings.pool:
            features = {**features, "f_mask_pooled": pooled_features(f_mask, geometry, pool)}
            measure = soft_measure(queries.mask_embed[0, best[visible]], f_mask, geometry)
        prompt, origin = np.full(n, VIDEO, np.int32), ("query",) * n
        return TrackSet(tracks.tokens, tracks.presence, tracks.masks, prompt, origin, frames, boxes, features, measure)

    def geometry(self, video: Video) -> FrameGeometry:
        """The geometry of the video's frames in the segmenter's input and maps."""
        return vita_geometry(video.size, self.settings.short_side, self.settings.long_side)

    def frame_features(self, video: Video, geometry: FrameGeometry) -> tuple[NDArray[np.float16], Spool]:
        """Frame queries float16 (T, Nf, C) and mask features float16 (T, h, w, Cm), `frames_per_pass` frames at a time.

        Raises InputError for features that do not fit in float16.
        """
        queries = []
        spool = Spool((*geometry.cells(), self.channels), "float16")
        for start in range(0, len(video), self.settings.frames_per_pass):
            self.progress(0.8 * start / len(video))
            part = range(start, min(start + self.settings.frames_per_pass, len(video)))
            frame_queries, maps = self.segmenter(torch.stack([geometry.image(video.read(t)) for t in part]))
            with torch.inference_mode():
                features = self.head.mask_features(maps)
            queries.append(to_float16(frame_queries, video, part, "VITA"))
            spool.append(to_float16(features, video, part, "VITA"))
        return np.concatenate(queries), spool

    @torch.inference_mode()
    def video_queries(self, q_f: NDArray[np.float16]) -> VideoQueries:
        """The head's output for a whole video, q_f (T, Nf, C)."""
        return self.head(torch.from_numpy(q_f).float()[None].to(self.segmenter.device))


def best_queries(queries: VideoQueries, count: int) -> NDArray[np.intp]:
    """The `count` video queries of the best class scores, best first, the first of equal ones first. queries: of one clip."""
    scores = queries.scores()[0].cpu().numpy()
    return np.argsort(-scores, kind="stable")[:count]
