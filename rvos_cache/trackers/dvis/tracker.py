"""The DVIS++ tracker: a video's frame queries and mask features, tracks of the queries, and what matching reads of their masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.settings import Settings
from rvos_cache.soft_overlap import SOFT_SPECS, soft_overlap, truth_shares
from rvos_cache.trackers.base import ShareDone, Tracker, part_of
from rvos_cache.trackers.dvis import features
from rvos_cache.trackers.dvis.checkpoint import load_dvis, load_segmenter
from rvos_cache.trackers.dvis.generators import LinkedFrames, OfflineModel
from rvos_cache.trackers.dvis.settings import DvisSettings
from rvos_cache.trackers.mask2former.geometry import square_geometry
from rvos_cache.trackers.mask2former.masks import decode_masks, largest, to_float16
from rvos_cache.trackers.mask2former.spool import Spool
from rvos_cache.trackers.planned import PlannedBytes, Size
from rvos_cache.types import VIDEO, Expression, GroundTruth, TrackSet, Video

SEGMENTED, TRACKED = 0.6, 0.75
"""Shares of the time at which the segmenter and the generator of tracks are done; the rest decodes masks."""


class DvisTracker(Tracker):
    """The best tracks of a frozen DVIS++ over the whole video, with its pooled mask features; no sentences, no ground truth.

    tokens: the refined embeddings of the tracks (N, T, 512), from which their classes and mask embeddings can be computed again.
    Mask features are kept in float16 while the video is processed; masks are of these.
    """

    Settings: type[Settings] = DvisSettings
    measurement_specs = SOFT_SPECS

    def __init__(self, settings: DvisSettings) -> None:
        self.settings = settings
        self.generator: OfflineModel | LinkedFrames
        if settings.generator == "offline":
            self.segmenter, head = load_dvis(settings.checkpoint)
            self.generator = OfflineModel(head)
        else:
            self.segmenter = load_segmenter(settings.checkpoint, "Mask2Former checkpoint")
            self.generator = LinkedFrames(self.segmenter)
        config = self.segmenter.model.config
        self.channels = self.generator.channels
        self.sizes = features.FeatureSizes(
            queries=config.num_queries,
            channels=config.hidden_dim,
            token_channels=self.channels,
            mask_channels=config.mask_feature_size,
            classes=self.generator.classes,
            rows=self.generator.rows,
        )
        self.feature_specs = features.feature_specs(settings, self.sizes)

    def weight_hashes(self) -> dict[str, str]:
        """Digests of Mask2Former and, with generator=offline, of the head."""
        return {**self.segmenter.weight_hashes(), **self.generator.weight_hashes()}

    def planned_bytes(self, videos: Iterable[Size]) -> PlannedBytes:
        """Bytes of a cache of `videos`, and with other numbers of tracks and cells, computed without reading them."""
        return features.planned_bytes(self.settings, self.sizes, videos)

    def track(self, video: Video, expressions: Sequence[Expression]) -> TrackSet:
        """The tracks of one video, best class score first, at most `max_tracks`."""
        geometry = square_geometry(video.size, self.settings.side)
        q, f_mask, pooled = self.frame_features(video, geometry, part_of(self.progress, 0, SEGMENTED))
        generated = self.generator.tracks(q.to(self.segmenter.device), part_of(self.progress, SEGMENTED, TRACKED))
        every_frame = range(len(video))
        to_float16(generated.tokens, video, every_frame, "DVIS++")
        best = generated.best(self.settings.max_tracks)
        tokens = generated.tokens[:, torch.from_numpy(best).to(generated.tokens.device)]
        logits = self.mask_logits(tokens, f_mask, part_of(self.progress, TRACKED, 1))
        masks, presence = decode_masks(logits, len(best), len(video), geometry)
        visible = np.flatnonzero(masks.area().any(1))
        masks, n = masks.select(visible), len(visible)
        tokens = tokens[:, torch.from_numpy(visible).to(tokens.device)]
        stored: Mapping[str, Any] = {
            "logits": generated.logits.cpu().numpy(),
            "query": best[visible].astype(np.int32),
            **({"f_mask_pooled": pooled} if self.settings.pool else {}),
            **({"raw": to_float16(q, video, every_frame, "DVIS++")} if self.settings.keep_raw else {}),
        }

        def measure(truth: GroundTruth) -> Mapping[str, NDArray[Any]]:
            return soft_overlap(self.mask_logits(tokens, f_mask), truth_shares(truth, geometry), truth.annotated)

        frames, boxes = largest(masks)
        return TrackSet(
            tokens=np.ascontiguousarray(tokens.transpose(0, 1).cpu().numpy()),
            presence=presence[visible],
            masks=masks,
            prompt=np.full(n, VIDEO, np.int32),
            origin=("query",) * n,
            prompt_frame=frames,
            prompt_box=boxes,
            features=stored,
            measure=measure,
        )

    def frame_features(
        self, video: Video, geometry: FrameGeometry, progress: ShareDone
    ) -> tuple[Tensor, Spool, NDArray[np.float16] | None]:
        """Queries, mask features and pooled mask features of all frames, `frames_per_pass` frames at a time.

        Queries before the last LayerNorm: float32 (T, Nq, C); mask features: float16 (T, h, w, Cm); pooled: float16 (T, pool, pool,
        Cm), None with pool=0. Raises InputError for features that do not fit in float16.
        """
        queries, pooled = [], []
        spool = Spool((*geometry.cells(), self.sizes.mask_channels), "float16")
        for start in range(0, len(video), self.settings.frames_per_pass):
            progress(start / len(video))
            part = range(start, min(start + self.settings.frames_per_pass, len(video)))
            frames = self.segmenter.segment(torch.stack([geometry.image(video.read(t)) for t in part]))
            to_float16(frames.q, video, part, "DVIS++")
            queries.append(frames.q.cpu())
            maps = frames.mask_features.permute(0, 2, 3, 1)
            spool.append(to_float16(maps, video, part, "DVIS++"))
            if self.settings.pool:
                pooled.append(to_float16(geometry.pool(maps, self.settings.pool), video, part, "DVIS++"))
        return torch.cat(queries), spool, np.concatenate(pooled) if pooled else None

    @torch.inference_mode()
    def mask_logits(self, tokens: Tensor, f_mask: Spool, progress: ShareDone | None = None) -> Iterator[Tensor]:
        """Mask logits (N, h, w) of each frame, of tokens (T, N, channels) and mask features f_mask (T, h, w, Cm)."""
        for t in range(len(tokens)):
            if progress is not None:
                progress(t / len(tokens))
            cells = torch.from_numpy(f_mask[t]).to(tokens.device).float()
            yield torch.einsum("nc,hwc->nhw", self.generator.mask_embed(tokens[t]), cells)
