"""Sums over a frame's cells of mask logits and of the annotated objects' shares of the cells: all that matching reads of masks.

Dice, binary cross-entropy and IoU of tracks and objects in any frames of a video are functions of these sums, because BCE(x, y) =
softplus(x) - x y. Letters: N tracks, A objects, T frames, h w cells of the map of logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.media.geometry import STRIDE, FrameGeometry
from rvos_cache.types import FeatureSpec, GroundTruth

SOFT_SPECS = (
    FeatureSpec("soft", ("N", "A", "T", 2), "float32"),
    FeatureSpec("soft_track", ("N", "T", 2), "float32"),
    FeatureSpec("soft_truth", ("A", "T"), "float32"),
    FeatureSpec("soft_cells", ("T",), "int32"),
)
"""The measurements that `soft_overlap` returns, as a tracker declares them in `measurement_specs`. Not float16: sums over the cells
of a map exceed its largest value."""

Values = Tensor | NDArray[np.floating]


@torch.no_grad()
def soft_overlap(
    logits: Iterable[Values], shares: Iterable[Values], annotated: Sequence[bool] | NDArray[np.bool_] | None = None
) -> dict[str, NDArray[Any]]:
    """The sums of mask logits x (N, h, w) and of shares y (A, h, w) in [0, 1], both given frame by frame for all T frames.

    Only one frame is in memory at a time. annotated: bool (T,), by default all are; N and A may be 0.

    Returns what SOFT_SPECS declares, computed in float64: soft (N, A, T, 2), the sums of σ(x) y and of x y; soft_track (N, T, 2),
    the sums of σ(x) and of softplus(x); soft_truth (A, T), the sum of y; soft_cells (T,), h w. In a frame without annotation soft,
    soft_truth and soft_cells are 0, and its shares are not read from the tensor. Raises ValueError when there is no frame, the
    numbers of frames or of tracks or of objects differ between frames, or the maps of a frame differ in size.
    """
    columns: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in SOFT_SPECS}
    for t, (x, y) in enumerate(zip(logits, shares, strict=True)):
        is_annotated = annotated is None or (t < len(annotated) and bool(annotated[t]))
        for name, value in _frame_sums(torch.as_tensor(x), torch.as_tensor(y), is_annotated).items():
            columns[name].append(value)
    if not columns["soft"] or (annotated is not None and len(annotated) != len(columns["soft"])):
        count = "any number" if annotated is None else len(annotated)
        raise ValueError(f"soft_overlap: {len(columns['soft'])} frames of logits, expected {count} of at least one")
    # T is the axis behind N and A.
    return {spec.name: np.stack(columns[spec.name], spec.dims.index("T")).astype(spec.dtype) for spec in SOFT_SPECS}


def truth_shares(truth: GroundTruth, geometry: FrameGeometry, stride: int = STRIDE) -> Iterator[Tensor]:
    """The shares (A, h, w) of each of the T frames, as `soft_overlap` takes them; zeros in a frame without annotation."""
    objects, frames = truth.masks.shape
    for t in range(frames):
        if not objects or not truth.annotated[t]:
            yield torch.zeros(objects, *geometry.cells(stride))
        else:
            masks = np.stack([truth.masks.decode(a, t) for a in range(objects)])
            yield geometry.shares(torch.from_numpy(masks), stride)


def _frame_sums(x: Tensor, y: Tensor, is_annotated: bool) -> dict[str, NDArray[Any]]:
    """The sums of one frame: those of SOFT_SPECS without the axis T."""
    if x.ndim != 3 or y.ndim != 3 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"soft_overlap: logits {tuple(x.shape)} and shares {tuple(y.shape)}, expected (N, h, w) and (A, h, w)")
    cells = x.shape[1] * x.shape[2]
    x = x.reshape(len(x), cells).double()
    p = x.sigmoid()
    track = torch.stack([p.sum(1), F.softplus(x).sum(1)], 1)
    if is_annotated:
        y = y.reshape(len(y), cells).to(x)
        both, truth = torch.stack([p @ y.T, x @ y.T], 2), y.sum(1)
    else:
        both, truth, cells = x.new_zeros(len(x), len(y), 2), x.new_zeros(len(y)), 0
    return {
        "soft": both.cpu().numpy(),
        "soft_track": track.cpu().numpy(),
        "soft_truth": truth.cpu().numpy(),
        "soft_cells": np.array(cells),
    }
