"""ReferDINO's memory-augmented tracker (section 3.2, Eqs. 1 and 2): which queries of the frames are the same object."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Linking = Literal["memory", "none"]
"""memory: the queries of the frames are linked by `align`; none: they stay in the order of their frame (Table 3)."""
Confidence = Literal["code_minmax", "paper_cos"]
"""code_minmax: largest product with a text token, scaled to [0, 1] over the queries of a frame (released code); paper_cos:
cosine with the sentence feature, negative ones as 0 (Eq. 2)."""


@torch.no_grad()
def align(
    queries: Tensor,
    text: Tensor,
    *,
    alpha: float = 0.1,
    confidence: Confidence = "code_minmax",
    text_mask: Tensor | None = None,
) -> Tensor:
    """The place of each tracked query among the queries of its frame: int64 (B, T, Q), on the CPU.

    queries: (B, T, Q, C); text: (B, T, L, C), `[CLS]` first; alpha: weight of the present frame in the memory; text_mask:
    bool (B, T, L), True where real: tokens that code_minmax reads, all of them if None, as in the released code.
    The first frame keeps its order. Each later one is assigned to the memory M at the least sum of 1 - cosine, and then
    M = (1 - alpha c) M + alpha c O with the confidence c of each assigned query O. Computed in float32 on the CPU, so that the
    result depends neither on the device nor on the other elements of the batch. Values that are not finite count as 0.
    Raises ValueError for an unknown confidence.
    """
    queries = queries.detach().cpu().float().nan_to_num(0, 0, 0)
    text = text.detach().cpu().float().nan_to_num(0, 0, 0)
    mask = torch.ones(text.shape[:-1], dtype=torch.bool) if text_mask is None else text_mask.cpu()
    # float32 also under the caller's autocast.
    with torch.autocast("cpu", enabled=False):
        return _linked(queries, text, mask, alpha, confidence)


def _linked(queries: Tensor, text: Tensor, mask: Tensor, alpha: float, confidence: str) -> Tensor:
    """As `align`, of finite float32 values on the CPU."""
    batch, frames, number, _ = queries.shape
    places = torch.arange(number).repeat(batch, frames, 1)
    directions = F.normalize(queries, dim=-1)
    memory = queries[:, 0]
    with torch.autocast("cpu", enabled=False):
        for t in range(1, frames):
            costs = 1 - F.normalize(memory, dim=-1) @ directions[:, t].transpose(1, 2)
            places[:, t] = _assigned(costs)
            rows = queries[:, t].take_along_dim(places[:, t, :, None], 1)
            # Products of large values overflow, and their confidence is not a number.
            share = alpha * _confidence(confidence, rows, text[:, t], mask[:, t]).nan_to_num(0)[..., None]
            memory = (1 - share) * memory + share * rows
    return places


def _assigned(costs: Tensor) -> Tensor:
    """The column of each row at the least sum of costs (B, Q, Q): (B, Q)."""
    from scipy.optimize import linear_sum_assignment

    return torch.stack([torch.as_tensor(linear_sum_assignment(one.numpy())[1]) for one in costs])


def _confidence(kind: str, queries: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Confidences (B, Q) in [0, 1] of queries (B, Q, C), given the text (B, L, C) of the frame and its mask (B, L)."""
    if kind == "paper_cos":
        return F.cosine_similarity(queries, text[:, :1], dim=-1).clamp(min=0)
    if kind != "code_minmax":
        raise ValueError(f"confidence must be code_minmax or paper_cos, is {kind!r}")
    scores = (queries @ text.transpose(1, 2)).masked_fill(~mask[:, None], torch.finfo(torch.float32).min).amax(-1)
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    # The released code divides 0 by 0 where all are equal, and its next assignment fails.
    return torch.where(high > low, (scores - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny), 0.0)
