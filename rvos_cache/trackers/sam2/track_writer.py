"""Masks, pointers and scores of one batch of prompts, collected frame by frame as SAM 2 finds them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from rvos_cache.masks import RleMasks
from rvos_cache.trackers.sam2.backend import Propagated

BEHIND = 3
"""Frames whose masks may wait to be encoded: each takes B x H x W bytes on the device."""


class TrackWriter:
    """The answers of B objects in T frames of `size` (H, W): masks become runs in a thread as they come, and their pixels go.

    Use it in a `with`, so that the thread ends.
    """

    def __init__(self, frames: int, size: tuple[int, int]) -> None:
        self.size = size
        self.masks: list[RleMasks | None] = [None] * frames
        self.tokens: list[Tensor | None] = [None] * frames
        self.scores: list[Tensor | None] = [None] * frames
        self.waiting: deque[Future[None]] = deque()
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> TrackWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def put(self, t: int, pointers: Tensor, scores: Tensor, masks: Tensor) -> None:
        """Frame t: pointers (B, C), scores (B,), mask logits (B, H, W) or bool."""
        # Column by column, as runs are counted: turned where it costs least.
        columns = (masks > 0).transpose(1, 2).contiguous()
        self.waiting.append(self.pool.submit(self._keep, t, pointers, scores, columns))
        if len(self.waiting) > BEHIND:
            self.waiting.popleft().result()

    def _keep(self, t: int, pointers: Tensor, scores: Tensor, columns: Tensor) -> None:
        self.tokens[t], self.scores[t] = pointers.float().cpu(), scores.float().cpu()
        self.masks[t] = RleMasks.from_dense(columns.cpu().numpy().transpose(0, 2, 1)[:, None])

    def tracks(self) -> Propagated:
        """All of it; every frame must have been put."""
        while self.waiting:
            self.waiting.popleft().result()
        frames = [m for m in self.masks if m is not None]
        tokens, scores = (torch.stack([v for v in held if v is not None], 1).numpy() for held in (self.tokens, self.scores))
        rows = [[m.bytes_at(k, 0) for m in frames] for k in range(len(tokens))]
        return Propagated(tokens, scores, RleMasks.from_bytes(rows, len(self.masks), self.size))
