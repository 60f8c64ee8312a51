"""SAM 2's memory encoder on the masks of many objects in one frame.

Equal to transformers' forward; the features of the frame, which do not depend on the object, are projected once, and channels are
last in memory from the first convolution on, so that a LayerNorm over them is one operation with the activation after it.
Letters: B objects, L = h * w cells of a map, C channels of the frame's features, D of a memory, S the side of the square.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import linear
from transformers.activations import GELUActivation

from rvos_cache.errors import InputError
from rvos_cache.trackers.sam2.fused import convolve, expand, mask_stem


class MemoryEncoder:
    """A Sam2VideoMemoryEncoder. module: with weights in the dtype of computation; exact: the same with float32 weights; config: of
    the whole model; side: S."""

    def __init__(self, module: Any, exact: Any, config: Any, side: int) -> None:
        self.module, self.exact, self.side, self.dtype = module, exact, side, module.projection.weight.dtype
        self.scale = (config.sigmoid_scale_for_mem_enc, config.sigmoid_bias_for_mem_enc)
        if not all(isinstance(layer.activation, GELUActivation) for layer in module.mask_downsampler.layers):
            raise InputError("SAM 2 checkpoint: mask_downsampler_hidden_act is not gelu; every released checkpoint has gelu")
        # The scale of a block's branch belongs to its last linear map.
        self.ends = []
        for block in exact.memory_fuser.layers:
            weight, bias = block.pointwise_conv2.weight * block.scale[:, None], block.pointwise_conv2.bias * block.scale
            self.ends.append((weight.to(self.dtype), bias.to(self.dtype)))

    def __call__(self, top: Tensor, low: Tensor, prompted: bool) -> Tensor:
        """Memory maps (B, L, D) of the features (1, C, h, w) of a frame and the logits (B, 1, S / 4, S / 4) of masks.

        prompted: the masks are prompts, so they are binarised.
        """
        down, exact = self.module.mask_downsampler, self.exact.mask_downsampler
        x = mask_stem(low, self.side, prompted, self.scale, down.layers[0].conv, exact.layers[0].layer_norm, self.dtype)
        for layer, norm in zip(down.layers[1:], exact.layers[1:]):
            x = convolve(x, layer.conv, norm.layer_norm, True)
        shape = (*x.shape[:3], -1)
        x = _pointwise(down.final_conv, x.flatten(1, 2)) + _pointwise(
            self.module.feature_projection, top.flatten(2).transpose(1, 2)
        )
        for block, norm, end in zip(self.module.memory_fuser.layers, self.exact.memory_fuser.layers, self.ends):
            normed = convolve(x.view(shape), block.depthwise_conv, norm.layer_norm, False).flatten(1, 2)
            x = x + linear(expand(normed, block.pointwise_conv1, block.activation), *end)
        return _pointwise(self.module.projection, x)


def _pointwise(conv: Any, x: Tensor) -> Tensor:
    """A convolution of one cell as a linear map of (B, L, C)."""
    return linear(x, conv.weight.flatten(1), conv.bias)
