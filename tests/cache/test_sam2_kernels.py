"""The Triton kernels against the torch operations that define them: on a GPU, else by Triton's interpreter where it is installed."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    # Triton reads it when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from rvos_cache.trackers.sam2 import convolutions, fused, kernels, mask_kernels  # noqa: E402
from rvos_cache.trackers.sam2.generate import boxes_of  # noqa: E402
from rvos_cache.trackers.sam2.preprocess import resize_logits  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter's matrix products take no bfloat16.
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
CLOSE: dict[str, float] = {"rtol": 2e-2, "atol": 2e-2} if ON_GPU else {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fused` without kernels."""
    monkeypatch.setattr(fused, "has_triton", lambda: False)


def random(*shape: int, dtype: Any = DTYPE, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def angles(length: int, width: int) -> tuple[Tensor, Tensor]:
    angle = random(length, width // 2, dtype=torch.float32, seed=9)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("branch", [None, (2, 9, 48), (1, 9, 48)])
@pytest.mark.parametrize("residual", [torch.float32, DTYPE])
def test_add_norm(branch: Any, gelu: bool, residual: Any) -> None:
    x, norm = random(1, 9, 48, dtype=residual), torch.nn.LayerNorm(48, eps=1e-3).to(DEVICE)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    added = None if branch is None else random(*branch, seed=1)
    with torch.inference_mode():
        total, normed = kernels.add_norm(x, added, norm, DTYPE, True, gelu)
        expected = fused.add_norm(x, added, norm, DTYPE, gelu=gelu)
    torch.testing.assert_close((total, normed), expected, **CLOSE)
    assert total.dtype == residual and normed.dtype == DTYPE


@pytest.mark.parametrize("heads", [1, 2])
def test_rotate(heads: int) -> None:
    x = random(2, 21, 3, heads, 16)[:, :, 1]
    torch.testing.assert_close(kernels.rotate(x, *angles(21, 16)), fused.rotate(x, *angles(21, 16)), **CLOSE)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_map_is_written_to_its_slot_alone(heads: int) -> None:
    projected, slot = random(2, 21, 3, 2, heads, 16), torch.tensor([2], device=DEVICE)
    rings = [[random(3, 2, heads, 4, 21, 16, seed=seed) for seed in (1, 2)] for _ in range(2)]
    for store, ring in zip((kernels.store_map, fused.store_map), rings):
        store(projected, *angles(21, 16), slot, *ring)
    torch.testing.assert_close(*rings, **CLOSE)
    untouched = random(3, 2, heads, 4, 21, 16, seed=1)
    assert torch.equal(rings[0][0][:, :, :, [0, 1, 3]], untouched[:, :, :, [0, 1, 3]])


@pytest.mark.parametrize("heads", [1, 2])
def test_shift_keys(heads: int) -> None:
    keys, positions = random(2, heads, 4, 21, 16), random(5, heads, 21, 16, seed=1)
    distances = torch.tensor([0, 4, 2, 0], device=DEVICE)
    inputs = (keys, positions, distances, 3)
    torch.testing.assert_close(kernels.shift_keys(*inputs), fused.shift_keys(*inputs), **CLOSE)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_attention_to_more_keys_equals_attention_to_all(heads: int, shared: bool) -> None:
    query = random(1 if shared else 2, heads, 70, 16, seed=4).expand(2, -1, -1, -1)
    keys, values = random(2, heads, 33, 16, seed=1), random(2, heads, 33, 16, seed=2)
    more = [random(2, 6, heads, 16, seed=seed).transpose(1, 2) for seed in (5, 6)]
    bias = torch.tensor([0, 0, 0, 0, float("-inf"), float("-inf")], device=DEVICE)
    logits = query.float() @ keys.float().transpose(2, 3) / 4
    apart = (logits.softmax(-1) @ values.float()).to(DTYPE), logits.logsumexp(-1)
    everything = [torch.cat([a, b[:, :, :4]], 2).float() for a, b in zip((keys, values), more)]
    expected = torch.nn.functional.scaled_dot_product_attention(query.float(), *everything).transpose(1, 2).flatten(2)
    for attend_more in (kernels.attend_more, fused.attend_more):
        merged = attend_more(query, *apart, *more, bias)
        torch.testing.assert_close(merged.float(), expected, **CLOSE)


@pytest.mark.parametrize("count", [1, 3])
def test_mask_logits(count: int) -> None:
    enlarged, finest, multipliers = random(2, 150, 24), random(150, 24, seed=1), random(2, count, 24, seed=2)
    logits = kernels.mask_logits(enlarged, finest, multipliers)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(
        logits, fused.mask_logits(enlarged, finest, multipliers), rtol=5 * CLOSE["rtol"], atol=0.1 if ON_GPU else 1e-5
    )


def layers(inputs: int, outputs: int, **shape: Any) -> tuple[Any, Any]:
    """A convolution in the dtype of computation and a LayerNorm."""
    generator = torch.Generator().manual_seed(3)
    conv, norm = torch.nn.Conv2d(inputs, outputs, **shape), torch.nn.LayerNorm(outputs, eps=1e-6)
    for parameter in (*conv.parameters(), *norm.parameters()):
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return conv.to(DEVICE, DTYPE), norm.to(DEVICE)


@pytest.mark.parametrize("prompted", [False, True])
def test_mask_stem(prompted: bool) -> None:
    conv, norm = layers(1, 4, kernel_size=3, stride=2, padding=1)
    low = 3 * random(2, 1, 6, 6, dtype=torch.float32)
    with torch.inference_mode():
        out = convolutions.mask_stem(low, 24, prompted, (20.0, -10.0), conv, norm, DTYPE)
        expected = fused.mask_stem(low, 24, prompted, (20.0, -10.0), conv, norm, DTYPE)
    torch.testing.assert_close(out, expected, rtol=5 * CLOSE["rtol"], atol=0.2 if ON_GPU else 1e-4)


def test_few_channels() -> None:
    (conv, norm), x = layers(4, 16, kernel_size=3, stride=2, padding=1), random(2, 14, 18, 4)
    with torch.inference_mode():
        out, expected = convolutions.few_channels(x, conv, norm), fused.convolve(x, conv, norm, True)
    torch.testing.assert_close(out, expected, rtol=5 * CLOSE["rtol"], atol=5 * CLOSE["atol"])


@pytest.mark.parametrize("size", [7, 3])
def test_own_filters(size: int) -> None:
    conv, norm = layers(24, 24, kernel_size=size, padding=size // 2, groups=24)
    x = random(2, 9, 19, 24)
    with torch.inference_mode():
        out, expected = convolutions.own_filters(x, conv, norm), fused.convolve(x, conv, norm, False)
    torch.testing.assert_close(out, expected, rtol=5 * CLOSE["rtol"], atol=5 * CLOSE["atol"])


@pytest.mark.parametrize("size", [(37, 150), (48, 40)])
def test_measures_are_those_of_enlarged_masks(size: tuple[int, int]) -> None:
    low = 3 * random(4, 12, 20, dtype=torch.float32)
    low[1], low[2] = -9, 9
    counts, box = mask_kernels.measure(low, size, 1.0)
    high = resize_logits(low, size)
    assert torch.equal(counts, torch.stack([(high > cut).flatten(1).sum(1) for cut in (1.0, -1.0)], 1).int())
    expected = boxes_of(high > 0)
    assert torch.equal(box[[0, 2, 3]].float(), expected[[0, 2, 3]]) and box[1].tolist() == [size[1], size[0], -1, -1]
