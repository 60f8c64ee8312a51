"""The sums of `soft_overlap` against those of dense maps, by hand, and what becomes of frames without annotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rvos_cache.masks import RleMasks
from rvos_cache.media.geometry import FrameGeometry
from rvos_cache.soft_overlap import SOFT_SPECS, soft_overlap, truth_shares
from rvos_cache.types import GroundTruth

SIZES = {"N": 5, "A": 3, "T": 7}


def clip(n: int, a: int, t: int = SIZES["T"], seed: int = 0, side: tuple[int, int] = (9, 11)) -> tuple[Tensor, Tensor]:
    """Logits (T, N, h, w) and shares (T, A, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(t, n, *side, generator=generator)
    shares = (torch.rand(t, a, *side, generator=generator) * 3 - 1).clamp(0, 1)
    return logits, shares


@pytest.mark.parametrize(("n", "a"), [(5, 3), (0, 3), (5, 0), (0, 0), (1, 1)])
def test_the_arrays_are_as_declared(n: int, a: int) -> None:
    sums = soft_overlap(*clip(n, a))
    sizes = {"N": n, "A": a, "T": 7}
    assert list(sums) == [spec.name for spec in SOFT_SPECS]
    for spec in SOFT_SPECS:
        assert sums[spec.name].shape == tuple(sizes[d] if isinstance(d, str) else d for d in spec.dims), spec.name
        assert sums[spec.name].dtype == spec.dtype
    assert (sums["soft_cells"] == 99).all()


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_dense_losses_of_torch(seed: int) -> None:
    """On random clips, of strided frames, at the size of DVIS++'s maps; the dense values are the library's, in float64."""
    logits, shares = clip(4, 2, 6, seed, (160, 160))
    sums = {name: torch.from_numpy(value).double() for name, value in soft_overlap(logits, shares).items()}
    frames = [[0, 1, 2, 3, 4, 5], [1, 3, 5], [4], [0, 5]][seed % 4]
    for n in range(4):
        for a in range(2):
            x, y = logits[frames, n].double().flatten(), shares[frames, a].double().flatten()
            (inter, product), (track, softplus) = sums["soft"][n, a, frames].sum(0), sums["soft_track"][n, frames].sum(0)
            truth, cells = sums["soft_truth"][a, frames].sum(), sums["soft_cells"][frames].sum()
            bce, p = F.binary_cross_entropy_with_logits(x, y), x.sigmoid()
            assert abs((softplus - product) / cells - bce) <= 1e-6 * max(1, float(bce))
            dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            assert abs(1 - (2 * inter + 1) / (track + truth + 1) - dice) <= 1e-6


def test_one_frame_by_hand() -> None:
    """Logits 0, 2 and -1 in three cells, of which an object covers half, all and nothing."""
    sums = soft_overlap([np.array([[[0.0, 2.0, -1.0]]])], [np.array([[[0.5, 1.0, 0.0]]])])
    sigmoid = [0.5, 1 / (1 + np.exp(-2)), 1 / (1 + np.e)]
    softplus = [np.log(2), np.log(1 + np.exp(2)), np.log(1 + np.exp(-1))]
    assert sums["soft"][0, 0, 0] == pytest.approx([0.25 + sigmoid[1], 2.0])
    assert sums["soft_track"][0, 0] == pytest.approx([sum(sigmoid), sum(softplus)])
    assert sums["soft_truth"].tolist() == [[1.5]] and sums["soft_cells"].tolist() == [3]


def test_frames_without_annotation_are_zero() -> None:
    logits, shares = clip(5, 3)
    annotated = np.array([True, False, True, True, False, True, True])
    sums, every = soft_overlap(logits, shares, annotated), soft_overlap(logits, shares)
    for name, axis in (("soft", 2), ("soft_truth", 1), ("soft_cells", 0)):
        assert not sums[name].compress(~annotated, axis).any()
        assert np.array_equal(sums[name].compress(annotated, axis), every[name].compress(annotated, axis))
    assert np.array_equal(sums["soft_track"], every["soft_track"])


def test_one_frame_is_in_memory_at_a_time() -> None:
    read: list[str] = []

    def frames(name: str, values: Tensor) -> Iterator[Tensor]:
        for t, value in enumerate(values):
            read.append(f"{name}{t}")
            yield value

    logits, shares = clip(2, 2, 3)
    soft_overlap(frames("x", logits), frames("y", shares))
    assert read == ["x0", "y0", "x1", "y1", "x2", "y2"]


def test_large_sums_are_finite() -> None:
    """A sum of x y over 160 by 160 cells exceeds float16 by far, and softplus does not overflow."""
    sums = soft_overlap(torch.full((1, 1, 160, 160), 200.0), torch.ones(1, 1, 160, 160))
    assert sums["soft"][0, 0, 0].tolist() == [25600, 200 * 25600] and sums["soft_track"][0, 0, 1] == 200 * 25600


@pytest.mark.parametrize(
    ("logits", "shares", "annotated"),
    [
        ([], [], None),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4), None),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5), None),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), [True, True, True]),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), [True]),
        ([torch.zeros(1, 4, 4), torch.zeros(2, 4, 4)], torch.zeros(2, 1, 4, 4), None),
    ],
)
def test_what_does_not_fit_together_is_refused(logits: Any, shares: Any, annotated: Any) -> None:
    with pytest.raises(ValueError):
        soft_overlap(logits, shares, annotated)


def test_shares_of_the_ground_truth() -> None:
    masks = np.zeros((2, 3, 10, 14), bool)
    masks[0, :, 2:5, 3:9], masks[1, 1:, 0:1, 0:1] = True, True
    truth = GroundTruth(("a", "b"), RleMasks.from_dense(masks), np.array([True, False, True]))
    geometry = FrameGeometry.stretched((10, 14), (64, 64), mean=(0, 0, 0), deviation=(1, 1, 1))
    first, without, last = truth_shares(truth, geometry)
    assert not without.any() and without.shape == (2, 16, 16)
    # 256 cells for 140 pixels.
    assert float(first[0].sum()) == pytest.approx(18 * 256 / 140, rel=1e-6) and not first[1].any()
    assert torch.equal(last, geometry.shares(torch.from_numpy(masks[:, 2])))
    nothing = GroundTruth((), RleMasks.empty(0, 3, (10, 14)), np.zeros(3, bool))
    assert [tuple(frame.shape) for frame in truth_shares(nothing, geometry)] == [(0, 16, 16)] * 3
