"""The baseline that selects every candidate, such as all boxes of GroundingDINO that SAM 2 tracks (SOLA, Table 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from rvos_select.data.batch import Batch
from rvos_select.selectors.untrained import Inputs, UntrainedSelector

LOGIT = 30.0
"""Its sigmoid is 1 in float32."""


class AllTracks(UntrainedSelector):
    """Scores every candidate of every expression 1."""

    empty = "zeros"

    def inputs(self) -> Inputs:
        """Words of any encoder, which are not read."""
        return Inputs("hashed")

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, N), float32; 0 outside `batch.track_mask`."""
        return torch.where(batch.track_mask, LOGIT, 0.0)
