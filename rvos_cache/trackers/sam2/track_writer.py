"""Masks, pointers and scores of one batch of prompts, collected frame by frame."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from rvos_cache.mask_encoding import Encoding
from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2.backend import Propagated

MAX_PENDING = 3
"""Frames whose masks may wait for encoding; each takes B x H x W bytes on the device."""


class TrackWriter:
    """The outputs of B objects in T frames of `size` (H, W); a thread encodes masks as runs, so their pixels are freed early.

    Use it in a `with`, so that the thread ends.
    """

    def __init__(self, frames: int, size: tuple[int, int]) -> None:
        self.size = size
        self.masks: list[RleMasks | None] = [None] * frames
        self.tokens: list[Tensor | None] = [None] * frames
        self.scores: list[Tensor | None] = [None] * frames
        self.pending: deque[Future[None]] = deque()
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> TrackWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def put(self, t: int, pointers: Tensor, scores: Tensor, masks: Tensor) -> None:
        """Add frame t: pointers (B, C), scores (B,), masks (B, H, W) as logits or bool. None of them may change afterwards."""
        self.tokens[t], self.scores[t] = pointers, scores
        self.pending.append(self.pool.submit(self._store, t, Encoding(masks)))
        if len(self.pending) > MAX_PENDING:
            self.pending.popleft().result()

    def _store(self, t: int, encoding: Encoding) -> None:
        self.masks[t] = encoding.result()

    def tracks(self) -> Propagated:
        """The tracks; `put` must have been called for every frame."""
        while self.pending:
            self.pending.popleft().result()
        masks = [m for m in self.masks if m is not None]
        # One copy from the device for all frames.
        parts = (torch.stack([v for v in frames if v is not None], 1) for frames in (self.tokens, self.scores))
        tokens, scores = (part.float().cpu().numpy() for part in parts)
        rows = [[m.bytes_at(k, 0) for m in masks] for k in range(len(tokens))]
        return Propagated(tokens, scores, RleMasks.from_bytes(rows, len(self.masks), self.size))
