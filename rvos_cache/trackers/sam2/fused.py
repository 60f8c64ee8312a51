"""Operations on maps of many objects: in plain torch, which defines them, and on a GPU in bfloat16 as one Triton kernel each.

Letters: B objects, n heads, L cells of a map, c channels of a head, S slots, K pointer tokens, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, layer_norm, scaled_dot_product_attention
from torch.nn.functional import gelu as gelu_of
from transformers.activations import GELUActivation

from rvos_cache.system.gpu_kernels import has_triton


def uses_kernels(x: Tensor, dtype: Any = None) -> bool:
    """Whether Triton kernels compute on `x`: on a GPU in bfloat16 (`dtype`: of another input or the result), unless torch.compile
    reads this, which makes its own."""
    half = torch.bfloat16 in (x.dtype, dtype)
    return not torch.compiler.is_compiling() and x.is_cuda and half and has_triton()


def add_norm(
    x: Tensor, branch: Tensor | None, norm: Any, dtype: Any = None, keep: bool = True, gelu: bool = False
) -> tuple[Tensor, Tensor]:
    """x + branch, in x's dtype, and its LayerNorm `norm` over the last axis, computed in float32, in `dtype` (default: x's).

    x: contiguous, may have a batch of one where `branch` has more; branch: None adds nothing; keep: without it, the first result is
    undefined; gelu: the second is GELU of the LayerNorm.
    """
    dtype = dtype or x.dtype
    if uses_kernels(x if branch is None else branch, dtype):
        from rvos_cache.trackers.sam2 import kernels

        return kernels.add_norm(x, branch, norm, dtype, keep, gelu)
    total = x if branch is None else (x + branch).to(x.dtype)
    normed = layer_norm(total.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
    return total, (gelu_of(normed) if gelu else normed).to(dtype)


def expand(x: Tensor, layer: Any, activation: Any) -> Tensor:
    """activation(layer(x)) of a Linear and a ReLU or GELU.

    On a GPU the activation is part of the matrix product, where GELU is computed with a hyperbolic tangent (Hendrycks and Gimpel 2016,
    section 2): it is 0.0005 off at most, less than the rounding of a value near 1 to bfloat16.
    """
    gelu, relu = isinstance(activation, (torch.nn.GELU, GELUActivation)), isinstance(activation, torch.nn.ReLU)
    if uses_kernels(x) and (gelu or relu):
        return expand_in_one(x, layer, gelu)
    expanded: Tensor = activation(layer(x))
    return expanded


def expand_in_one(x: Tensor, layer: Any, gelu: bool) -> Tensor:
    """The same as one operation; gelu: else ReLU."""
    rows = x.reshape(-1, x.shape[-1])
    out: Tensor = torch._addmm_activation(layer.bias, rows, layer.weight.t(), use_gelu=gelu)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """scaled_dot_product_attention of (B, n, L, c), for shapes of few keys or queries, or that come up seldom.

    On a GPU without cuDNN, which is faster for large shapes, but plans each new shape for half a second.
    """
    if uses_kernels(query) and query.shape[-1] % 8 == 0:
        return flash(query, key, value)[0]
    return scaled_dot_product_attention(query, key, value)


def flash(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (B, n, L, c) on a GPU, and the logarithms of its sums of exponentials, float32 (B, n, L)."""
    attended, sums, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    return attended, sums


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, L, n, c) with the rotary position embedding of its cells (Su et al. 2021), as (B, n, L, c).

    Pairs of channels rotate as complex numbers; cos, sin: float32 (L, c / 2).
    """
    if uses_kernels(x):
        from rvos_cache.trackers.sam2 import kernels

        return kernels.rotate(x, cos, sin)
    pairs = torch.view_as_complex(x.transpose(1, 2).float().reshape(*x.shape[:1], x.shape[2], x.shape[1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).type_as(x)


def store_map(projected: Tensor, cos: Tensor, sin: Tensor, slot: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write the keys, rotated, and the values of a map into a slot.

    projected: (B, L, layers, 2, n, c), the keys and values of each layer; slot: int64 (1,); keys, values: (layers, B, n, S, L, c).
    """
    if uses_kernels(projected):
        from rvos_cache.trackers.sam2 import kernels

        kernels.store_map(projected, cos, sin, slot, keys, values)
        return
    for i in range(len(keys)):
        keys[i].index_copy_(2, slot, rotate(projected[:, :, i, 0], cos, sin)[:, :, None])
        values[i].index_copy_(2, slot, projected[:, :, i, 1].transpose(1, 2)[:, :, None])


def shift_keys(keys: Tensor, positions: Tensor, distances: Tensor, count: int) -> Tensor:
    """The keys of the first `count` slots with the terms of their temporal positions: (B, n, count * L, c).

    keys: (B, n, S, L, c), contiguous; positions: (P, n, L, c), contiguous; distances: int64 (S,), the position of each slot.
    """
    if uses_kernels(keys):
        from rvos_cache.trackers.sam2 import kernels

        return kernels.shift_keys(keys, positions, distances, count)
    shifts = positions.index_select(0, distances[:count]).transpose(0, 1)
    return (keys[:, :, :count] + shifts).flatten(2, 3)


def attend_more(query: Tensor, attended: Tensor, sums: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention to more keys than it was computed with, (B, L, n * c).

    query: (B, n, L, c); attended: (B, n, L, c), the attention to the other keys; sums: float32 (B, n, L), the logarithms of its sums
    of exponentials; keys, values: (B, n, K, c), the more; bias: float32 (K,), added to their logits, -inf where there is none.
    """
    if uses_kernels(query):
        from rvos_cache.trackers.sam2 import kernels

        return kernels.attend_more(query, attended, sums, keys, values, bias)
    logits = query.float() @ keys.float().transpose(2, 3) * query.shape[-1] ** -0.5 + bias
    largest = torch.maximum(sums, logits.amax(-1))[..., None]
    weights, before = (logits - largest).exp(), (sums[..., None] - largest).exp()
    merged = (before * attended.float() + weights @ values.float()) / (before + weights.sum(-1, keepdim=True))
    return merged.type_as(attended).transpose(1, 2).flatten(2)


def mask_logits(enlarged: Tensor, finest: Tensor, kernels: Tensor) -> Tensor:
    """GELU(enlarged + finest) times the kernel of each mask, float32 (B, M, L).

    enlarged: (B, L, c); finest: (L, c), of every object; kernels: (B, M, c).
    """
    if uses_kernels(enlarged):
        from rvos_cache.trackers.sam2 import kernels as triton_kernels

        return triton_kernels.mask_logits(enlarged, finest, kernels)
    return (kernels @ gelu_of(enlarged + finest).transpose(1, 2)).float()


def enlarge(low: Tensor, side: int) -> Tensor:
    """Logits (B, 1, h, w) as float32 (B, 1, S, S)."""
    return interpolate(low.float(), (side, side), mode="bilinear", align_corners=False)


def mask_stem(low: Tensor, side: int, prompted: bool, scale: tuple[float, float], conv: Any, norm: Any, dtype: Any) -> Tensor:
    """The first layer of the memory encoder on the masks of logits (B, 1, h, w): (B, S / 2, S / 2, c).

    Enlarges them to the square of S pixels, takes their sigmoid, or with `prompted` whether they are above 0, multiplies by scale[0]
    and adds scale[1]; then `convolve` with a 3x3 convolution of stride 2 and padding 1.
    """
    if uses_kernels(low, dtype):
        from rvos_cache.trackers.sam2 import convolutions

        return convolutions.mask_stem(low, side, prompted, scale, conv, norm, dtype)
    high = enlarge(low, side)
    masks = ((high > 0).float() if prompted else high.sigmoid()) * scale[0] + scale[1]
    return convolve(masks.permute(0, 2, 3, 1).to(dtype), conv, norm, True)


def convolve(x: Tensor, conv: Any, norm: Any, gelu: bool) -> Tensor:
    """A convolution of (B, H, W, c), the LayerNorm `norm` of its channels and, with `gelu`, GELU: (B, H', W', c')."""
    if uses_kernels(x):
        from rvos_cache.trackers.sam2 import convolutions

        halves = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (2, 2), (1, 1), (1, 1))
        if halves and x.shape[-1] <= 4 and x.shape[1] % 2 == x.shape[2] % 2 == 0 and gelu:
            return convolutions.few_channels(x, conv, norm)
        same = conv.stride == (1, 1) and conv.padding == (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
        if conv.groups == x.shape[-1] == len(conv.weight) and same and conv.kernel_size[0] == conv.kernel_size[1] and not gelu:
            return convolutions.own_filters(x, conv, norm)
    out = conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return add_norm(out.permute(0, 2, 3, 1).contiguous(), None, norm, keep=False, gelu=gelu)[1]
