"""What makes tracks of the frame queries of a video: DVIS++'s offline model, or links between the queries of frames.

Letters: T frames, Nq queries of a frame and tracks, C channels of a query, Cm of the mask features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rvos_cache.trackers.base import ShareDone, part_of
from rvos_cache.trackers.dvis.checkpoint import head_hash
from rvos_cache.trackers.dvis.head import DvisHead, track_scores
from rvos_cache.trackers.dvis.linking import link_frames, reordered
from rvos_cache.trackers.mask2former.segmenter import Segmenter

WINDOW = 8
"""Frames that the tracker is given at a time, to report how far it is; it changes results only by rounding."""


@dataclass(frozen=True)
class GeneratedTracks:
    """All tracks of one video, one for each query of its first frame.

    tokens: float16 (T, Nq, channels); logits: float32 (rows, Nq, K + 1), the void class last; scores: float32 (Nq,) in [0, 1].
    """

    tokens: Tensor
    logits: Tensor
    scores: Tensor

    def best(self, count: int) -> NDArray[np.intp]:
        """The `count` tracks of the best scores, best first, the first of equal ones first."""
        return np.argsort(-self.scores.cpu().numpy(), kind="stable")[:count]


class OfflineModel:
    """The referring tracker, then the temporal refiner over the whole video. rows of logits: the refiner's, the tracker's mean."""

    rows = 2

    def __init__(self, head: DvisHead) -> None:
        self.head = head
        self.channels, self.classes = head.refiner.channels, head.refiner.classes

    def weight_hashes(self) -> dict[str, str]:
        """File of the head -> digest of its weights."""
        return head_hash(self.head)

    @torch.inference_mode()
    def tracks(self, q: Tensor, progress: ShareDone) -> GeneratedTracks:
        """The tracks of q (T, Nq, C), queries before the segmenter's last LayerNorm."""
        queries, raw = self.head.reid(q[None])
        embeds, logits, state = [], [], None
        tracker_progress = part_of(progress, 0, 0.5)
        for start in range(0, len(q), WINDOW):
            tracker_progress(start / len(q))
            window = slice(start, start + WINDOW)
            tracked = self.head.tracker(queries[:, window], raw[:, window], state)
            embeds.append(tracked.embeds)
            logits.append(tracked.logits)
            state = tracked.state
        progress(0.5)
        tracker_logits = torch.cat(logits, 1)
        # Classes and masks are of the embeds as they are stored, so a cache's tokens have them again.
        tokens = self.head.refiner.refine(torch.cat(embeds, 1), raw).half()
        refiner_logits = self.head.refiner.heads(tokens.float()).logits
        both = torch.stack([refiner_logits[0], tracker_logits[0].mean(0)])
        return GeneratedTracks(tokens[0], both, track_scores(refiner_logits, tracker_logits)[0])

    @torch.inference_mode()
    def mask_embed(self, tokens: Tensor) -> Tensor:
        """Mask embeddings (..., Cm) of tokens (..., channels)."""
        embed: Tensor = self.head.refiner.mask_embed(tokens.float())
        return embed


class LinkedFrames:
    """Mask2Former's queries of each frame, linked as MinVIS links them, with their own masks and their mean class logits."""

    rows = 1

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        config = segmenter.model.config
        self.channels, self.classes = config.hidden_dim, config.num_labels

    def weight_hashes(self) -> dict[str, str]:
        """Nothing besides the segmenter's."""
        return {}

    @torch.inference_mode()
    def tracks(self, q: Tensor, progress: ShareDone) -> GeneratedTracks:
        """As `OfflineModel.tracks`."""
        queries = self.segmenter.norm(q)
        tokens = reordered(queries, link_frames(queries[None])[0]).half()
        logits = self.segmenter.class_logits(tokens.float()).mean(0)
        return GeneratedTracks(tokens, logits[None], logits.softmax(-1)[..., :-1].amax(-1))

    def mask_embed(self, tokens: Tensor) -> Tensor:
        """Mask embeddings (..., Cm) of tokens (..., channels)."""
        return self.segmenter.mask_embed(tokens.float())
