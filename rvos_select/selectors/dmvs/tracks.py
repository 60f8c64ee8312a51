"""Labels of motion queries that are tracks of the cache, matched on the host; masks=frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rvos_cache.types import Overlap
from rvos_select.selectors.dmvs.config import DmvsConfig
from rvos_select.selectors.matching import NO_OBJECT, MatchRule, TrackCosts, counted_track_costs, match_tracks


def query_labels(referred: Tensor, real: Tensor, source: Tensor, overlaps: Sequence[Overlap], config: DmvsConfig) -> Tensor:
    """REFERRED, NO_OBJECT or IGNORED of each query, int64 (layers, B, Q), all tensors on the CPU; NO_OBJECT of those that are not real.

    referred: probabilities (layers, B, Q); real: bool (B, Q); source: int64 (B, Q), the track of each query; overlaps: of each
    expression.
    """
    c = config
    rule = MatchRule(c.match, c.positive_iou, c.least_iou, c.duplicate_iou, c.cost_class)
    labels = torch.full(referred.shape, NO_OBJECT, device="cpu")
    for b, overlap in enumerate(overlaps):
        queries = real[b].nonzero()[:, 0]
        tracks = source[b, queries]
        counted = counted_track_costs(overlap, c.cost_dice, c.cost_iou)
        costs = TrackCosts(counted.masks[tracks], counted.iou[tracks], counted.visible)
        for layer, own in enumerate(referred[:, b, queries]):
            labels[layer, b, queries] = match_tracks(costs, own, rule).labels
    return labels
