"""SAM 2's memory attention on a batch of objects, without the terms that every frame or every object would compute again.

A memory map is attended to by several later frames, each time with another temporal position, and a projection is linear. So the
keys and values of a map are computed once, and the projected position is added to the keys. Before the first cross-attention the
features of a frame do not depend on the object, so that part runs once for all objects.
Letters: B objects, L = h * w cells of a map, C channels of the frame's features, D of a memory, n heads, K pointer tokens, P
temporal positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

POSITION_SCALE = 0.1
"""Factor of the position encoding that is added to a frame's features before the first layer."""


@dataclass(frozen=True)
class KeyValues:
    """A memory map projected by each layer: rotated keys and values, each (B, n, L, C / n).

    17 MB of bfloat16 per object for four layers at 1024 pixels; the map itself takes 0.5 MB.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class MemoryAttention:
    """The layers of a Sam2VideoMemoryAttention, called on batches of objects."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.cross_attention = [layer.cross_attn_image for layer in module.layers]
        self.rotary = module.rotary_emb(module.layer_norm.weight, module.position_ids)
        cos, sin = self.rotary
        # Rotary position embedding (Su et al. 2021): pairs of channels rotate as complex numbers.
        self.rotation = torch.complex(cos[..., ::2], sin[..., ::2])

    def project(self, memory: Tensor) -> KeyValues:
        """Keys and values of a memory map (L, B, D)."""
        tokens = memory.transpose(0, 1)
        keys = tuple(self._rotate(_split_heads(c.k_proj(tokens), c)) for c in self.cross_attention)
        return KeyValues(keys, tuple(_split_heads(c.v_proj(tokens), c) for c in self.cross_attention))

    def position_keys(self, positions: Tensor) -> list[Tensor]:
        """The terms that position encodings (P, L, D) add to a map's keys: one (P, 1, n, L, C / n) for each layer."""
        return [self._rotate(_split_heads(linear(positions, c.k_proj.weight), c))[:, None] for c in self.cross_attention]

    def attend(
        self, features: Tensor, maps: Sequence[tuple[KeyValues, Sequence[Tensor]]], tokens: Tensor, token_positions: Tensor
    ) -> Tensor:
        """Features (1, L, C), their positions added, conditioned on the memory of each object: (B, L, C).

        maps: memory maps, each with its position keys, one tensor per layer; tokens, token_positions: pointers and their
        position encodings (K, B, D).
        """
        tokens, keyed, x = tokens.transpose(0, 1), (tokens + token_positions).transpose(0, 1), features[:, None]
        count = len(tokens)
        for i, (layer, cross) in enumerate(zip(self.module.layers, self.cross_attention)):
            normed = layer.layer_norm1(x)
            x = x + layer.self_attn(query=normed, key=normed, value=normed, position_embeddings=self.rotary)[0]
            query = self._rotate(_split_heads(cross.q_proj(layer.layer_norm2(x[:, 0])), cross))
            keys = torch.cat([*(m.keys[i] + position[i] for m, position in maps), _split_heads(cross.k_proj(keyed), cross)], 2)
            values = torch.cat([*(m.values[i] for m, _ in maps), _split_heads(cross.v_proj(tokens), cross)], 2)
            attended = scaled_dot_product_attention(query.expand(count, -1, -1, -1), keys, values)
            x = x + cross.o_proj(attended.transpose(1, 2).flatten(2))[:, None]
            x = x + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(x))))
        conditioned: Tensor = self.module.layer_norm(x[:, 0])
        return conditioned

    def _rotate(self, x: Tensor) -> Tensor:
        """x (..., L, C / n) with the rotary position embedding of its cells."""
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.rotation).flatten(-2).type_as(x)


def _split_heads(x: Tensor, attention: Any) -> Tensor:
    """(B, L, C) as (B, n, L, C / n)."""
    return x.view(*x.shape[:-1], attention.num_attention_heads, -1).transpose(1, 2)
