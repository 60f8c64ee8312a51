"""SAM 2's memory attention on a batch of objects, without the terms that every frame or every object would compute again.

Before the first cross-attention the features of a frame do not depend on the object, so that part runs once for all objects. The
maps in memory are projected once (`ring`).
Letters: B objects, L = h * w cells of a map, C channels of the frame's features, D of a memory, n heads, c = C / n, K pointer
tokens, P temporal positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from rvos_cache.trackers.sam2.fused import add_norm, attend_more, expand, flash, rotate, shift_keys, store_map, uses_kernels
from rvos_cache.trackers.sam2.ring import MemoryRing

POSITION_SCALE = 0.1
"""Factor of the position encoding that is added to a frame's features before the first layer."""
CUDNN, FLASH = 3, 1
"""Values of torch's SDPBackend. cuDNN is half as fast again, but plans each new shape for half a second."""


class MemoryAttention:
    """The layers of a Sam2VideoMemoryAttention, called on batches of objects.

    module: its weights in the precision of computation; norms: the same module, whose LayerNorms have float32 weights.
    """

    def __init__(self, module: Any, norms: Any | None = None) -> None:
        self.module, self.norms = module, norms or module
        self.cross_attention = [layer.cross_attn_image for layer in module.layers]
        first = self.cross_attention[0]
        self.heads, self.width, self.dtype = first.num_attention_heads, first.head_dim, first.k_proj.weight.dtype
        cos, sin = self.norms.rotary_emb(self.norms.layer_norm.weight, self.norms.position_ids)
        # Channels 2i and 2i + 1 have the same angle.
        self.cos, self.sin = (table.flatten(0, -2)[:, ::2].float().contiguous() for table in (cos, sin))
        self.self_weights = [_stacked([a.q_proj, a.k_proj, a.v_proj]) for a in (layer.self_attn for layer in module.layers)]
        self.memory_weights = _stacked([p for a in self.cross_attention for p in (a.k_proj, a.v_proj)])

    def make_ring(self, objects: int, slots: int, storage: MemoryRing | None = None) -> MemoryRing:
        """Slots for the maps of `objects` objects. storage: see MemoryRing."""
        layers, device = len(self.cross_attention), self.cos.device
        return MemoryRing(objects, slots, layers, self.heads, len(self.cos), self.width, self.dtype, device, storage)

    def store(self, memory: Tensor, ring: MemoryRing, slot: Tensor) -> None:
        """Write the keys and values of a memory map (B, L, D) into a slot, int64 (1,), of the ring."""
        projected = linear(memory.to(self.dtype), *self.memory_weights)
        shape = (*memory.shape[:2], len(self.cross_attention), 2, self.heads, self.width)
        store_map(projected.view(shape), self.cos, self.sin, slot, ring.keys, ring.values)

    def position_keys(self, positions: Tensor) -> list[Tensor]:
        """The terms that position encodings (P, L, D) add to a map's keys: one (P, n, L, c) for each layer."""
        keys = (linear(positions.to(self.dtype), c.k_proj.weight) for c in self.cross_attention)
        return [rotate(k.unflatten(-1, (self.heads, self.width)), self.cos, self.sin).contiguous() for k in keys]

    def attend(
        self,
        features: Tensor,
        ring: MemoryRing,
        position_keys: list[Tensor],
        distances: Tensor,
        count: int,
        tokens: Tensor,
        token_positions: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """Features (1, L, C), their positions added, conditioned on the memory of each object: (B, L, C).

        position_keys: of `position_keys`; distances: int64 (S,), the position of each slot; count: occupied slots; tokens,
        token_positions: pointers (B, K, D) and their position encodings (K, D); bias: float32 (K,), 0, or -inf where there is no
        pointer.
        """
        layers, norms = self.module.layers, self.norms.layers
        keyed = tokens + token_positions
        x, normed = add_norm(features.contiguous(), None, norms[0].layer_norm1)
        for i, (layer, cross) in enumerate(zip(layers, self.cross_attention)):
            x, normed = add_norm(x, self._attend_self(i, normed), norms[i].layer_norm2)
            query = rotate(self._heads(cross.q_proj(normed)), self.cos, self.sin).expand(ring.objects, -1, -1, -1).contiguous()
            keys, values = ring.layer(i, count)
            keys = shift_keys(keys, position_keys[i], distances, count)
            more = self._heads(cross.k_proj(keyed)).transpose(1, 2), self._heads(cross.v_proj(tokens)).transpose(1, 2)
            attended = _attend(query, keys, values, *more, bias, often=count == ring.slots)
            x, normed = add_norm(x, cross.o_proj(attended), norms[i].layer_norm3)
            following = norms[i + 1].layer_norm1 if i + 1 < len(norms) else self.norms.layer_norm
            x, normed = add_norm(
                x, layer.linear2(expand(normed, layer.linear1, layer.activation)), following, keep=i + 1 < len(norms)
            )
        return normed

    def _attend_self(self, i: int, normed: Tensor) -> Tensor:
        q, k, v = linear(normed, *self.self_weights[i]).unflatten(-1, (3, self.heads, self.width)).unbind(2)
        attended = scaled_dot_product_attention(rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin), v.transpose(1, 2))
        projected: Tensor = self.module.layers[i].self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, C) as (B, L, n, c)."""
        return x.unflatten(-1, (self.heads, self.width))


def merges_pointers(example: Tensor) -> bool:
    """Whether attention to maps and to pointers is computed apart and merged, so that the number of pointers needs no other kernel."""
    return uses_kernels(example)


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, more_keys: Tensor, more_values: Tensor, bias: Tensor, often: bool
) -> Tensor:
    """Attention to the keys of maps and of pointers, (B, L, n * c); bias: of the pointers, (K,); often: most frames have this shape."""
    apart = merges_pointers(query)
    kind = torch._fused_sdp_choice(query, keys, values) if apart else None
    if kind == CUDNN and often:
        attended, sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(query, keys, values, None, True)
    elif kind in (CUDNN, FLASH):
        attended, sums = flash(query, keys, values)
    else:
        mask = torch.cat([bias.new_zeros(keys.shape[2]), bias])[None, None, None].to(query.dtype) if apart else None
        keys, values = torch.cat([keys, more_keys], 2), torch.cat([values, more_values], 2)
        return scaled_dot_product_attention(query, keys, values, mask).transpose(1, 2).flatten(2)
    return attend_more(query, attended, sums.view(attended.shape[:3]), more_keys, more_values, bias)


def _stacked(layers: list[Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias of one Linear that computes the outputs of several, one after the other."""
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
