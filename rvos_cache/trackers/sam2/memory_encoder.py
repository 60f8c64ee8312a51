"""SAM 2's memory encoder on the masks of many objects in one frame.

Equal to transformers' forward; the features of the frame, which do not depend on the object, are projected once, and channels are
last in memory from the first convolution on, so that a LayerNorm over them is one operation with the activation after it.
Letters: B objects, L = h * w cells of a map, C channels of the frame's features, D of a memory, S the side of the square.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import conv2d, linear
from transformers.activations import GELUActivation

from rvos_cache.trackers.sam2.fused import add_norm


class MemoryEncoder:
    """A Sam2VideoMemoryEncoder. module: with weights in the dtype of computation; exact: the same with float32 weights."""

    def __init__(self, module: Any, exact: Any) -> None:
        self.module, self.exact, self.dtype = module, exact, module.projection.weight.dtype
        # The scale of a block's branch belongs to its last linear map.
        self.ends = []
        for block in exact.memory_fuser.layers:
            weight, bias = block.pointwise_conv2.weight * block.scale[:, None], block.pointwise_conv2.bias * block.scale
            self.ends.append((weight.to(self.dtype), bias.to(self.dtype)))

    def __call__(self, top: Tensor, masks: Tensor) -> Tensor:
        """Memory maps (B, L, D) of the features (1, C, h, w) of a frame and masks (B, 1, S, S)."""
        down = self.module.mask_downsampler
        for layer, exact in zip(down.layers, self.exact.mask_downsampler.layers):
            masks = self._convolve(masks, layer.conv, exact.layer_norm, layer.activation)
        grid, count = masks.shape[2:], len(masks)
        x = _pointwise(down.final_conv, _cells(masks)) + _pointwise(self.module.feature_projection, _cells(top))
        for block, exact, end in zip(self.module.memory_fuser.layers, self.exact.memory_fuser.layers, self.ends):
            image = x.view(count, *grid, -1).permute(0, 3, 1, 2)
            normed = _cells(self._convolve(image, block.depthwise_conv, exact.layer_norm, None))
            x = x + linear(block.activation(block.pointwise_conv1(normed)), *end)
        return _pointwise(self.module.projection, x)

    def _convolve(self, x: Tensor, conv: Any, norm: Any, activation: Any) -> Tensor:
        """A convolution, the LayerNorm of its channels and the activation: (B, c, h, w) in channels-last memory."""
        out = conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        gelu = isinstance(activation, GELUActivation)
        _, normed = add_norm(out.permute(0, 2, 3, 1).contiguous(), None, norm, keep=False, gelu=gelu)
        normed = normed.permute(0, 3, 1, 2)
        return normed if gelu or activation is None else activation(normed)


def _cells(x: Tensor) -> Tensor:
    """(B, C, h, w) as (B, h * w, C)."""
    return x.flatten(2).transpose(1, 2)


def _pointwise(conv: Any, x: Tensor) -> Tensor:
    """A convolution of one cell as a linear map of (B, L, C)."""
    return linear(x, conv.weight.flatten(1), conv.bias)
