"""The basis of the low_rank profile, from the videos of a dataset, and how well its masks agree with the exact ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from rvos_cache.errors import InputError
from rvos_cache.trackers.vita.basis import Basis, Moments, fit_basis
from rvos_cache.trackers.vita.geometry import STRIDE, FrameGeometry
from rvos_cache.trackers.vita.spool import Spool, SpooledFrames
from rvos_cache.trackers.vita.tracker import VitaTracker, best_queries
from rvos_cache.trackers.vita.tracks import draw_queries
from rvos_cache.types import Video


def fit_on_videos(tracker: VitaTracker, videos: Iterable[Video], rank: int) -> Basis:
    """The best basis of `rank` for the mask features of `videos` and the embeddings of their best video queries.

    The padding of the maps is left out. Raises InputError for no videos or a rank that the features do not have.
    """
    features, embeddings = Moments(tracker.channels), Moments(tracker.channels)
    if not 1 <= rank <= tracker.channels:
        raise InputError(f"rank {rank}: the mask features have {tracker.channels} channels; give 1 to {tracker.channels}")
    for geometry, spool, embedded in _seen(tracker, videos):
        h, w = (-(-side // STRIDE) for side in geometry.resized)
        for frame in SpooledFrames(spool, range(len(spool)), tracker.channels):
            features.add(frame[:h, :w].reshape(-1, tracker.channels))
        embeddings.add(embedded.cpu().numpy())
    if not features.count:
        raise InputError("no videos to fit the basis on; give a split that has some")
    return fit_basis(features.mean(), embeddings.mean(), rank)


def agreement(tracker: VitaTracker, basis: Basis, videos: Iterable[Video]) -> float:
    """Mean IoU of the tracks' masks drawn in the basis with the exact ones, over tracks and frames where either has a pixel.

    The design accepts a basis from 0.99 on (systems/dmvs_dervos.md, 1.1). Raises InputError where no mask has a pixel.
    """
    found: list[NDArray[np.float64]] = []
    for geometry, spool, embedded in _seen(tracker, videos):
        reduced = Spool((*spool.shape[:-1], basis.rank), "float16")
        for frame in SpooledFrames(spool, range(len(spool)), basis.rank, basis.coordinates):
            reduced.append(frame[None])
        exact = draw_queries(embedded, spool, geometry).masks
        near = draw_queries(embedded @ torch.from_numpy(basis.v).to(embedded.device), reduced, geometry).masks
        for n in range(len(embedded)):
            a, b = exact.dense([n])[0], near.dense([n])[0]
            union = (a | b).sum((1, 2))
            found.append((a & b).sum((1, 2))[union > 0] / union[union > 0])
    scores = np.concatenate([np.zeros(0), *found])
    if not len(scores):
        raise InputError("the best video queries have no pixel in any of the videos; check the checkpoint and the videos")
    return float(scores.mean())


def _seen(tracker: VitaTracker, videos: Iterable[Video]) -> Iterator[tuple[FrameGeometry, Spool, torch.Tensor]]:
    """Of each video its geometry, mask features (T, h, w, Cm) and the mask embeddings (N, Cm) of its best video queries."""
    for video in videos:
        geometry = tracker.geometry(video)
        q_f, spool = tracker.frame_features(video, geometry)
        found = tracker.video_queries(q_f)
        yield geometry, spool, found.mask_embed[0, best_queries(found, tracker.settings.max_tracks)]
