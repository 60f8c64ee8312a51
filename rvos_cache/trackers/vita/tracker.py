"""The VITA tracker: frames to frame queries, mask features, video queries, and the best of these as tracks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.settings import Settings
from rvos_cache.trackers.base import Tracker
from rvos_cache.trackers.planned import PlannedBytes, Size
from rvos_cache.trackers.vita.basis import Basis
from rvos_cache.trackers.vita.geometry import FrameGeometry
from rvos_cache.trackers.vita.head import VideoQueries
from rvos_cache.trackers.vita.profiles import PLANNED_RANK, feature_specs, mask_features, profile_bytes
from rvos_cache.trackers.vita.segmenter import head_hash, load_vita
from rvos_cache.trackers.vita.settings import VitaSettings
from rvos_cache.trackers.vita.spool import Spool
from rvos_cache.trackers.vita.tracks import draw_queries
from rvos_cache.types import VIDEO, Expression, TrackSet, Video

LARGEST = 6e4
"""Features beyond it, nearly all that float16 holds, are refused instead of rounded."""


class VitaTracker(Tracker):
    """The best video queries of a frozen VITA as tracks, with its features; no sentences, no ground truth.

    All that is computed from features is computed from the float16 that is stored: the head gives a cache's `q_f` the stored
    `q_v`, and `f_mask` gives its `mask_embed` the stored masks, whatever the profile keeps of it.
    """

    Settings: type[Settings] = VitaSettings

    def __init__(self, settings: VitaSettings) -> None:
        self.settings = settings
        self.segmenter, self.head = load_vita(settings.checkpoint)
        self.channels = self.head.sizes.mask_channels
        self.basis = Basis.load(Path(settings.basis)) if settings.basis else None
        if self.basis and len(self.basis.w) != self.channels:
            raise InputError(
                f"{settings.basis}: a basis of {len(self.basis.w)} channels, {settings.checkpoint} has {self.channels}; "
                "fit it with the same checkpoint"
            )
        self.feature_specs = feature_specs(settings, self.head.sizes, self.basis.rank if self.basis else 0)

    def weight_hashes(self) -> dict[str, str]:
        """Digests of Mask2Former, of the head and, where there is one, of the basis."""
        return {**self.segmenter.weight_hashes(), **head_hash(self.head), **(self.basis.weight_hash() if self.basis else {})}

    def planned_bytes(self, videos: Iterable[Size]) -> PlannedBytes:
        """Bytes of a cache of `videos` under every profile, without running any."""
        rank = self.basis.rank if self.basis else min(PLANNED_RANK, self.channels)
        return PlannedBytes("profile", self.settings.profile, profile_bytes(self.settings, self.head.sizes, videos, rank))

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """The tracks of one video, best class score first, at most `max_tracks`."""
        geometry = self.geometry(video)
        q_f, f_mask = self.frame_features(video, geometry)
        found = self.video_queries(q_f)
        best = best_queries(found, self.settings.max_tracks)
        drawn = draw_queries(found.mask_embed[0, best], f_mask, geometry)
        shown = np.flatnonzero(drawn.masks.area().any(1))
        drawn, n = drawn.select(shown), len(shown)
        frames, boxes = _largest(drawn.masks.area(), drawn.masks.boxes())
        features: Mapping[str, Any] = {
            "q_f": q_f,
            "q_v": found.q_v[0].cpu().numpy(),
            "logits": found.logits[0].cpu().numpy(),
            "mask_embed": found.mask_embed[0].cpu().numpy(),
            "query": best[shown].astype(np.int32),
            **mask_features(self.settings, f_mask, self.basis),
        }
        prompt = np.full(n, VIDEO, np.int32)
        return TrackSet(drawn.tokens, drawn.presence, drawn.masks, prompt, ("query",) * n, frames, boxes, features)

    def geometry(self, video: Video) -> FrameGeometry:
        """Where its pixels lie in the segmenter's input and maps."""
        return FrameGeometry.of(video.size, self.settings.short_side, self.settings.long_side)

    def frame_features(self, video: Video, geometry: FrameGeometry) -> tuple[NDArray[np.float16], Spool]:
        """Frame queries float16 (T, Nf, C) and mask features float16 (T, h, w, Cm), `frames_per_pass` frames at a time.

        Raises InputError for features that float16 does not hold.
        """
        queries = []
        spool = Spool((*geometry.cells, self.channels), "float16")
        for start in range(0, len(video), self.settings.frames_per_pass):
            part = range(start, min(start + self.settings.frames_per_pass, len(video)))
            found, maps = self.segmenter(torch.stack([geometry.image(video.read(t)) for t in part]))
            with torch.inference_mode():
                features = self.head.mask_features(maps)
            queries.append(_halved(found, video, part))
            spool.append(_halved(features, video, part))
        return np.concatenate(queries), spool

    @torch.inference_mode()
    def video_queries(self, q_f: NDArray[np.float16]) -> VideoQueries:
        """The head's answer to a whole video, q_f (T, Nf, C)."""
        return self.head(torch.from_numpy(q_f).float()[None].to(self.segmenter.device))


def best_queries(found: VideoQueries, count: int) -> NDArray[np.intp]:
    """The `count` video queries of the best class scores, best first; of equal ones the first. found: of one clip."""
    scores = found.scores()[0].cpu().numpy()
    return np.argsort(-scores, kind="stable")[:count]


def _halved(values: torch.Tensor, video: Video, part: range) -> NDArray[np.float16]:
    """The values (t, ...) of the frames `part` as float16."""
    out = values.cpu().numpy()
    # NaN fails the comparison too.
    bad = ~(np.abs(out).reshape(len(part), -1).max(1) < LARGEST)
    if bad.any():
        name = video.frame_names[part[int(bad.argmax())]]
        raise InputError(
            f"video {video.video_id}, frame {name}: VITA's features are NaN or beyond {LARGEST:g}, which float16 cannot hold; "
            "check the frame and the checkpoint"
        )
    return out.astype(np.float16)


def _largest(area: NDArray[np.int32], boxes: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The frame (N,) in which each track is largest, and its box there, float32 (N, 4) x0 y0 x1 y1."""
    frames = area.argmax(1)
    found = boxes[np.arange(len(area)), frames].reshape(-1, 4).astype(np.float32)
    found[:, 2:] += found[:, :2]
    return frames.astype(np.int32), found
