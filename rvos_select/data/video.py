"""A video that a selector is applied to: it makes the batches that the selector's `infer` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rvos_select.data.batch import Batch
from rvos_select.data.collate import collate
from rvos_select.data.samples import VideoSample


@dataclass(frozen=True)
class InferenceVideo:
    """Some expressions of one video. rows: their positions in the sample; requires: parts of its batches; device: of their tensors."""

    sample: VideoSample
    rows: tuple[int, ...]
    requires: tuple[str, ...]
    device: torch.device

    @property
    def expressions(self) -> int:
        """E, number of expressions."""
        return len(self.rows)

    @property
    def frames(self) -> int:
        """T, number of frames."""
        return self.sample.tokens.shape[1]

    def batch(self, expressions: Sequence[int] | None = None, frames: Sequence[int] | None = None) -> Batch:
        """The batch of the given expressions (default: all, in order), which share the video or, with `frames`, one clip of it.

        The same tracks are in every batch of the same expressions.
        """
        rows = [(self.sample, self.rows[i]) for i in (range(len(self.rows)) if expressions is None else expressions)]
        return collate(rows, self.requires, frames=None if frames is None else [frames]).to(self.device)
