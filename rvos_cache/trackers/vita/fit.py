"""Fit the basis of the low_rank profile on videos of a dataset, and compare its masks with the exact ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.media.geometry import STRIDE, FrameGeometry
from rvos_cache.trackers.mask2former.spool import Spool, SpooledFrames
from rvos_cache.trackers.vita.basis import Basis, Moments, fit_basis
from rvos_cache.trackers.vita.tracker import VitaTracker, best_queries
from rvos_cache.trackers.vita.tracks import decode_queries
from rvos_cache.types import Video


def fit_on_videos(tracker: VitaTracker, videos: Iterable[Video], rank: int) -> Basis:
    """The optimal basis of `rank` for the mask features of `videos` and the embeddings of their best video queries.

    The padding of the maps is excluded. Raises InputError if there are no videos, or if the rank is not between 1 and the
    channels of the features.
    """
    features, embeddings = Moments(tracker.channels), Moments(tracker.channels)
    if not 1 <= rank <= tracker.channels:
        raise InputError(f"rank {rank}: the mask features have {tracker.channels} channels; give 1 to {tracker.channels}")
    for geometry, spool, mask_embed in _video_features(tracker, videos):
        h, w = (-(-side // STRIDE) for side in geometry.resized)
        for frame in SpooledFrames(spool, range(len(spool)), tracker.channels):
            features.add(frame[:h, :w].reshape(-1, tracker.channels))
        embeddings.add(mask_embed.cpu().numpy())
    if not features.count:
        raise InputError("no videos to fit the basis on; give a split with videos")
    return fit_basis(features.mean(), embeddings.mean(), rank)


def agreement(tracker: VitaTracker, basis: Basis, videos: Iterable[Video]) -> float:
    """Mean IoU of the masks in the basis with the exact masks, over tracks and frames where either has pixels.

    A basis is accurate enough from 0.99 on. Raises InputError if no mask has pixels.
    """
    ious: list[NDArray[np.float64]] = []
    for geometry, spool, mask_embed in _video_features(tracker, videos):
        reduced = Spool((*spool.shape[:-1], basis.rank), "float16")
        for frame in SpooledFrames(spool, range(len(spool)), basis.rank, basis.coordinates):
            reduced.append(frame[None])
        exact = decode_queries(mask_embed, spool, geometry).masks
        approximate = decode_queries(mask_embed @ torch.from_numpy(basis.v).to(mask_embed.device), reduced, geometry).masks
        for n in range(len(mask_embed)):
            a, b = exact.dense([n])[0], approximate.dense([n])[0]
            union = (a | b).sum((1, 2))
            ious.append((a & b).sum((1, 2))[union > 0] / union[union > 0])
    scores = np.concatenate([np.zeros(0), *ious])
    if not len(scores):
        raise InputError("the masks of the best video queries are empty in all videos; check the checkpoint and the videos")
    return float(scores.mean())


def _video_features(tracker: VitaTracker, videos: Iterable[Video]) -> Iterator[tuple[FrameGeometry, Spool, torch.Tensor]]:
    """For each video its geometry, mask features (T, h, w, Cm) and the mask embeddings (N, Cm) of its best video queries."""
    for video in videos:
        geometry = tracker.geometry(video)
        q_f, spool = tracker.frame_features(video, geometry)
        queries = tracker.video_queries(q_f)
        yield geometry, spool, queries.mask_embed[0, best_queries(queries, tracker.settings.max_tracks)]
