"""Which query of a frame continues which track: assignments of the queries of successive frames.

Letters: B videos, T frames, N queries, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def match_queries(previous: Tensor, queries: Tensor) -> Tensor:
    """Row of `queries` (B, N, C) for each row of `previous` (B, N, C), int64 (B, N): the assignment of largest total cosine.

    Every video is matched by its own queries; the released code of DVIS++ matches a batch by its first video.
    """
    from scipy.optimize import linear_sum_assignment

    cosines = F.normalize(previous, dim=-1) @ F.normalize(queries, dim=-1).transpose(1, 2)
    rows = [linear_sum_assignment(1 - video.double().cpu().numpy())[1] for video in cosines]
    return torch.stack([torch.as_tensor(row, dtype=torch.int64) for row in rows]).to(queries.device)


def reordered(values: Tensor, order: Tensor) -> Tensor:
    """values (B, N, ...) with row order[b, n] of video b at n."""
    return torch.stack([value[row] for value, row in zip(values, order)])


def link_frames(queries: Tensor) -> Tensor:
    """Order int64 (B, T, N) of all frames of queries (B, T, N, C): order[b, t, n] is the query of frame t that track n has.

    Frame t is matched with frame t - 1 in the order of its tracks; in the first frame track n has query n. Source: MinVIS
    (Huang et al., NeurIPS 2022), section 3.2.
    """
    order = [torch.arange(queries.shape[2], device=queries.device).expand(len(queries), -1)]
    for t in range(1, queries.shape[1]):
        order.append(match_queries(reordered(queries[:, t - 1], order[-1]), queries[:, t]))
    return torch.stack(order, 1)
