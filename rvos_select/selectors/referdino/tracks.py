"""What ReferDINO's selector reads of a batch: the candidates of each expression, its text, and which queries are one track.

Letters as in `rvos_cache.types`; Q candidates of an expression, padded to the most of the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.errors import InputError
from rvos_cache.media.boxes import centre_and_size
from rvos_cache.trackers.referdino import align
from rvos_cache.trackers.referdino.alignment import Confidence
from rvos_cache.types import Overlap
from rvos_select.data.batch import Batch
from rvos_select.selectors.referdino.cached_losses import Objects


class Candidates(NamedTuple):
    """tracks: int64 (B, Q), positions of the candidates among the N tracks of the batch; real: bool (B, Q), False in padding."""

    tracks: Tensor
    real: Tensor

    def of(self, values: Tensor) -> Tensor:
        """(B, Q, ...): the candidates' entries of values (V, N, ...), zeros in padding."""
        rows = (
            torch.arange(len(self.tracks), device=values.device) if len(values) > 1 else self.tracks.new_zeros(len(self.tracks))
        )
        chosen = values[rows[:, None], self.tracks]
        return chosen * self.real.reshape(*self.real.shape, *(1,) * (chosen.ndim - 2)).to(chosen.dtype)


class Text(NamedTuple):
    """tokens: float (B, T, L, C) of each frame, `[CLS]` first; mask: bool (B, L), True where real."""

    tokens: Tensor
    mask: Tensor

    def sentence(self, feature: str) -> Tensor:
        """The sentence feature of each frame, (B, T, C): `[CLS]`, the mean of all tokens, or the mean of both."""
        first = self.tokens[:, :, 0]
        if feature == "cls":
            return first
        mask = self.mask[:, None, :, None].to(self.tokens.dtype)
        mean = (self.tokens * mask).sum(2) / mask.sum(2).clamp(min=1)
        return mean if feature == "mean_tokens" else (first + mean) / 2


def candidates(track_mask: Tensor) -> Candidates:
    """The candidates marked in bool (B, N), in their order."""
    order = torch.sort(track_mask.int(), dim=1, descending=True, stable=True).indices
    tracks = order[:, : int(track_mask.sum(1).amax())] if track_mask.numel() else order
    return Candidates(tracks, track_mask.gather(1, tracks))


def text_of(batch: Batch, own: Candidates) -> Text:
    """The text tokens of each expression: its range `features.words` of the tokens `frames.text` of all expressions of its video.

    Raises InputError where the candidates of an expression have different ranges.
    """
    ranges = own.of(batch.features["words"].long()).cpu()
    real = own.real.cpu()
    video = [frames[:] for frames in batch.frames["text"]]
    parts = []
    for b in range(len(ranges)):
        distinct = ranges[b, real[b]].unique(dim=0)
        if len(distinct) > 1:
            raise InputError(
                f"expression {batch.expression_ids[b] if batch.expression_ids else b}: its candidates have the text of several "
                "expressions; ReferDINO scores tracks that a query of their own sentence gave: extract with --tracker gdino-queries"
            )
        start, end = distinct[0].tolist() if len(distinct) else (0, 0)
        parts.append(video[b if len(video) > 1 else 0][:, start:end].to(own.real.device).float())
    longest = max(1, *(part.shape[1] for part in parts))
    mask = torch.arange(longest) < torch.tensor([part.shape[1] for part in parts])[:, None]
    tokens = torch.stack([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])
    return Text(tokens, mask.to(own.real.device))


def own_order(raw: Tensor, real: Tensor) -> Tensor:
    """int64 (B, T, Q): the candidate that is each frame's first, second, ... query of its own order, from raw (B, Q, T)."""
    last = torch.iinfo(torch.int64).max
    return raw.long().masked_fill(~real[..., None], last).argsort(dim=1, stable=True).transpose(1, 2)


def as_candidates(order: Tensor) -> Tensor:
    """order (B, T, Q) with its queries sorted by the candidate that each is in the first frame."""
    first = order[:, :1].argsort(-1)
    return order.gather(2, first.expand_as(order))


def retracked(queries: Tensor, order: Tensor, text: Text, real: Tensor, alpha: float, confidence: Confidence) -> Tensor:
    """int64 (B, T, Q): the candidate that each query is in each frame, by ReferDINO's tracker over all T frames.

    queries: (B, T, Q, C) of the candidates; order: as `own_order` gives it, of which the tracker begins; real: bool (B, Q).
    """
    counts = real.sum(1)
    own = queries.gather(2, order[..., None].expand_as(queries))
    out = order.clone()
    for count in sorted(set(counts.tolist()) - {0}):
        # Padding would be assigned too, so expressions of as many candidates are aligned together.
        rows = (counts == count).nonzero()[:, 0]
        mask = text.mask[rows, None].expand(-1, order.shape[1], -1)
        places = align(own[rows, :, :count], text.tokens[rows], alpha=alpha, confidence=confidence, text_mask=mask)
        out[rows, :, :count] = order[rows, :, :count].gather(2, places.to(order.device))
    return out


def objects_in(boxes: NDArray[np.float64], size: tuple[int, int]) -> Objects:
    """The objects with the boxes (A, T, 4) of `Batch.boxes` in frames of `size` (H, W): as `objects_of` their masks."""
    corner, extent = torch.from_numpy(boxes).float().split(2, -1)
    last = (corner + extent - 1).clamp(min=0)
    visible = (last > corner).all(-1)
    shares = centre_and_size(torch.cat([corner, last], -1)) / torch.tensor([size[1], size[0], size[1], size[0]])
    return Objects(shares * visible[..., None], visible, size[0] * size[1])


def own_overlap(overlap: Overlap, tracks: Tensor, places: Tensor | None) -> Overlap:
    """The counts of one expression's q candidates, the tracks int64 (q,), or of its queries: places (t, q), see `retracked`."""
    own = tracks.cpu().numpy()
    if places is None:
        return replace(overlap, inter=overlap.inter[own], area=overlap.area[own])
    frames = np.arange(len(overlap.annotated))
    at = own[places.cpu().numpy()[: len(frames)]].T
    objects = np.arange(overlap.inter.shape[1])
    return replace(overlap, inter=overlap.inter[at[:, None], objects[None, :, None], frames], area=overlap.area[at, frames])
