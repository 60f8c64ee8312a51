"""SAM 2's image encoder in half precision: Hiera (Ryali et al. 2023) and its feature pyramid, up to the maps that tracking reads.

Three differences from transformers' forward, none in the result: tokens stay in the order of a stage's windows, so that nothing is
rearranged between its blocks (attention over all tokens does not depend on their order either); adding a branch and normalising is
one operation (`fused.add_norm`); and position encodings, and attention weights that nothing reads, are not computed.
Letters: B frames, h w the cells of a map, C its channels, W windows, S the side of the square.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear, pad, scaled_dot_product_attention

from rvos_cache.trackers.sam2.fused import add_norm, expand

Grid = tuple[int, int]


class ImageEncoder:
    """The maps of frames: fine (B, c, S/4, S/4) and (B, c', S/8, S/8), projected for the mask decoder, and top (B, C, S/16, S/16).

    model: a Sam2VideoModel whose weights have the dtype of computation; exact: the same with float32 weights.
    """

    def __init__(self, model: Any, exact: Any) -> None:
        self.backbone, self.exact = model.vision_encoder.backbone, exact.vision_encoder.backbone
        self.dtype = model.no_memory_embedding.dtype
        self.levels = model.vision_encoder.num_feature_levels
        neck, decoder = exact.vision_encoder.neck, exact.mask_decoder
        # From the coarsest level to the finest, as in the neck.
        convolutions = [(conv.weight.flatten(1), conv.bias) for conv in neck.convs]
        self.top_down = [i in neck.fpn_top_down_levels for i in range(len(convolutions))][::-1]
        self.projections = [_to(layer, self.dtype) for layer in convolutions]
        for i, conv in ((-1, decoder.conv_s0), (-2, decoder.conv_s1)):
            # Two linear maps in a row are one, unless the first is also added to the next level.
            self.projections[i] = _to(_composed(convolutions[i], (conv.weight.flatten(1), conv.bias)), self.dtype)
        self.positions: dict[Grid, Tensor] = {}

    @staticmethod
    def reads(model: Any) -> bool:
        """Whether this encodes as `model` does: a neck of 1x1 convolutions that adds levels at its coarse end only."""
        neck = model.vision_encoder.neck
        pointwise = all(conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0) for conv in neck.convs)
        return pointwise and not {0, 1} & set(neck.fpn_top_down_levels) and model.vision_encoder.num_feature_levels == 3

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Normalised frames (B, 3, S, S) in the dtype of the weights to maps (B, c, h, w), finest first, in channels-last memory."""
        stages = self._stages(pixels)
        maps: list[Tensor] = []
        for i, stage in enumerate(reversed(stages)):
            level = linear(stage, *self.projections[i]).permute(0, 3, 1, 2)
            if self.top_down[i] and i:
                level = level + interpolate(maps[-1], scale_factor=2.0, mode="nearest")
            maps.append(level)
        return maps[::-1][: self.levels]

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        """The output (B, h, w, C) of each stage."""
        blocks, norms = self.backbone.blocks, self.exact.blocks
        embedded = self.backbone.patch_embed(pixels)
        grid: Grid = (embedded.shape[1], embedded.shape[2])
        size = _window(blocks[0], grid, 0)
        embedded = _reorder(embedded.flatten(1, 2), grid, 0, size)
        # In float32 up to the end of the first stage, as under autocast.
        x, normed = add_norm(self._positions(grid, size), embedded, norms[0].layer_norm1, self.dtype)
        stages = []
        for i, block in enumerate(blocks):
            if size != (other := _window(block, grid, size)):
                x, normed = (_reorder(part, grid, size, other) for part in (x, normed))
                size = other
            branch = self._attend(block, normed, grid, size)
            if block.dim != block.dim_out:
                x = _pooled(linear(normed, block.proj.weight, block.proj.bias), grid, size, block.query_stride)
            if block.query_stride:
                grid = (grid[0] // block.query_stride[0], grid[1] // block.query_stride[1])
                size //= block.query_stride[0]
            x, normed = add_norm(x, branch, norms[i].layer_norm2, self.dtype)
            addend = block.mlp.proj_out(expand(normed, block.mlp.proj_in, block.mlp.activation))
            if i in self.backbone.stage_ends:
                x, addend = (x + addend).to(x.dtype), None
                stages.append(_reorder(x.to(self.dtype), grid, size, 0).unflatten(1, grid))
            if i + 1 < len(blocks):
                x, normed = add_norm(x, addend, norms[i + 1].layer_norm1, self.dtype)
        return stages

    def _attend(self, block: Any, normed: Tensor, grid: Grid, size: int) -> Tensor:
        """A block's attention (B, tokens, C) of tokens in the order of windows of `size` (0: row by row)."""
        module, batch, window, shape = block.attn, len(normed), block.window_size, grid
        padding = _padding(window, grid)
        if any(padding):
            normed = pad(normed.unflatten(1, grid), (0, 0, 0, padding[1], 0, padding[0])).flatten(1, 2)
            shape = (grid[0] + padding[0], grid[1] + padding[1])
            normed = _reorder(normed, shape, 0, window)
        inside: Grid = (window, window) if window else shape
        heads = module.num_attention_heads
        qkv = module.qkv(normed).view(-1, inside[0] * inside[1], 3, heads, module.qkv.out_features // (3 * heads))
        query, key, value = qkv.unbind(2)
        if stride := block.query_stride:
            query = _pooled(query.flatten(2), inside, 0, stride).unflatten(2, (heads, -1))
            shape, grid = ((h // stride[0], w // stride[1]) for h, w in (shape, grid))
            window //= stride[0]
        attended = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        out: Tensor = module.proj(attended.transpose(1, 2).flatten(2)).view(batch, shape[0] * shape[1], -1)
        if any(padding):
            out = _reorder(out, shape, window, 0).unflatten(1, shape)[:, : grid[0], : grid[1]].flatten(1, 2).contiguous()
        return out

    def _positions(self, grid: Grid, size: int) -> Tensor:
        """Resized weights (1, h * w, C) in the order of windows of `size`, float32, the same for every frame."""
        if grid not in self.positions:
            self.positions[grid] = _reorder(self.exact._get_pos_embed(grid).flatten(1, 2), grid, 0, size)
        return self.positions[grid]


def _window(block: Any, grid: Grid, current: int) -> int:
    """The order of tokens in which a block is computed: windows of this size, or 0, row by row."""
    if not block.window_size:
        return 0 if block.query_stride else current
    return 0 if any(_padding(block.window_size, grid)) else int(block.window_size)


def _padding(window: int, grid: Grid) -> Grid:
    """Cells that are added to a map so that windows fill it."""
    return (-grid[0] % window, -grid[1] % window) if window else (0, 0)


def _reorder(x: Tensor, grid: Grid, old: int, new: int) -> Tensor:
    """Tokens (B, h * w, C) in the order of windows of size `new` instead of `old`; 0: row by row. Contiguous."""
    (h, w), batch = grid, len(x)
    if old == new:
        return x.contiguous()
    if old:
        x = x.view(batch, h // old, w // old, old, old, -1).transpose(2, 3)
    x = x.reshape(batch, h * w, -1)
    if new:
        x = x.view(batch, h // new, new, w // new, new, -1).transpose(2, 3).reshape(batch, h * w, -1)
    return x


def _pooled(x: Tensor, grid: Grid, size: int, stride: Grid | None) -> Tensor:
    """The maxima of `stride` cells of tokens (B, h * w, C), in the same order with windows smaller by as much."""
    if stride is None:
        return x
    h, w = (size, size) if size else grid
    cells = x.reshape(len(x), -1, h // stride[0], stride[0], w // stride[1], stride[1], x.shape[-1])
    if tuple(stride) != (2, 2):
        return cells.amax((3, 5)).flatten(1, 3)
    # Two passes of an elementwise maximum, which are faster than a reduction over axes of two.
    rows = torch.maximum(cells[:, :, :, 0], cells[:, :, :, 1])
    return torch.maximum(rows[:, :, :, :, 0], rows[:, :, :, :, 1]).flatten(1, 3)


def _composed(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the second linear map after the first."""
    return second[0] @ first[0], second[0] @ first[1] + second[1]


def _to(layer: tuple[Tensor, Tensor], dtype: Any) -> tuple[Tensor, Tensor]:
    return layer[0].to(dtype), layer[1].to(dtype)
