"""SOLA's kernels for a GPU against PyTorch's operators. Without a GPU they run where Triton is installed, interpreted:
TRITON_INTERPRET=1 python -m pytest tests/select/test_sola_kernels.py."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from rvos_select.selectors.sola.layers import EPSILON, GROUPS, MaskedGroupNorm, standardised

pytest.importorskip("triton", reason="Triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no GPU")


def close(value: Tensor, expected: Tensor, dtype: Any) -> bool:
    bound = 1e-2 if dtype == torch.bfloat16 else 2e-6
    return float((value.float().cpu() - expected.float().cpu()).abs().max()) <= bound * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("shape", [(3, 11, 64), (2, 70, 512), (2, 5, 24), (4, 9, 1024), (1, 100, 24)])
def test_group_norm(shape: tuple[int, int, int], masked: bool, dtype: torch.dtype) -> None:
    """And its gradients; a sample may be all padding, and columns need not be a power of two."""
    from rvos_select.selectors.sola.kernels import FusedGroupNorm

    torch.manual_seed(0)
    s, k, d = shape
    norm = MaskedGroupNorm(d)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x, gradient = (torch.randn(shape) + 0.5).to(dtype), torch.randn(shape).to(dtype)
    mask = torch.rand(s, k) < 0.7 if masked else None
    if mask is not None and s > 1:
        mask[-1] = False
    x.requires_grad_()
    expected = norm(x, mask)
    inputs = [t.detach().to(DEVICE).requires_grad_() for t in (x, norm.weight, norm.bias)]
    device_mask = None if mask is None else mask.to(DEVICE)
    value = FusedGroupNorm.apply(inputs[0], device_mask, inputs[1], inputs[2], GROUPS, EPSILON)
    assert value.dtype == dtype and close(value, expected, dtype)
    wanted = torch.autograd.grad(expected, [x, norm.weight, norm.bias], gradient)
    for one, other in zip(torch.autograd.grad(value, inputs, gradient.to(DEVICE)), wanted):
        assert one.dtype == other.dtype and close(one, other, dtype)


@pytest.mark.parametrize("shape", [(5, 24), (3, 768), (2, 1)])
def test_standardised_weights(shape: tuple[int, int]) -> None:
    from rvos_select.selectors.sola.kernels import FusedStandardisation

    torch.manual_seed(0)
    weight, gradient = (torch.randn(shape) + 0.3).requires_grad_(), torch.randn(shape)
    with torch.no_grad():
        weight[0] = 0.25  # a row of equal weights
    on_device = weight.detach().to(DEVICE).requires_grad_()
    expected, value = standardised(weight), FusedStandardisation.apply(on_device, EPSILON)
    assert close(value, expected, torch.float32)
    of_weight, wanted = (
        torch.autograd.grad(value, on_device, gradient.to(DEVICE))[0], torch.autograd.grad(expected, weight, gradient)[0]
    )  # fmt: skip
    # Of equal weights it is the gradient divided by epsilon.
    assert close(of_weight, wanted, torch.float32)
