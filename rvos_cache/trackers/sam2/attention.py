"""SAM 2's attention from the objects of a frame to their memory, without what the library computes again.

Two things hold for longer than one frame and one object. A map is read by the frames that follow it, each time from another
place in time, and a projection is linear: so a map's keys and values are made once, and the place's own key is added to them.
And until it meets its first memory the top map knows of no object: it looks at itself once for all of them.
Letters: B objects, L = h * w places, C channels of the top map, D of a memory, n heads, K pointer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

POSITION_SHARE = 0.1
"""Of the top map's position encoding, added to it before the first layer."""


@dataclass(frozen=True)
class Read:
    """A memory map as each layer reads it: keys, turned by their places in the frame, and values, each (B, n, L, C / n).

    17 MB of bfloat16 an object for four layers at 1024 pixels, where the map itself has 0.5 MB.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class MemoryAttention:
    """The weights of a Sam2VideoMemoryAttention, read by batches of objects."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.cross = [layer.cross_attn_image for layer in module.layers]
        self.rotary = module.rotary_emb(module.layer_norm.weight, module.position_ids)
        cos, sin = self.rotary
        # Channels turn in pairs, as complex numbers do (rotary position embedding, Su et al. 2021).
        self.turn = torch.complex(cos[..., ::2], sin[..., ::2])

    def read(self, memory: Tensor) -> Read:
        """Keys and values of a memory map (L, B, D)."""
        tokens = memory.transpose(0, 1)
        keys = tuple(self._turned(_heads(c.k_proj(tokens), c)) for c in self.cross)
        return Read(keys, tuple(_heads(c.v_proj(tokens), c) for c in self.cross))

    def place_keys(self, positions: Tensor) -> list[Tensor]:
        """What the position encodings (P, L, D) of P places in time add to a map's keys, (P, 1, n, L, C / n) for each layer."""
        return [self._turned(_heads(linear(positions, c.k_proj.weight), c))[:, None] for c in self.cross]

    def attend(self, top: Tensor, maps: Sequence[tuple[Read, Sequence[Tensor]]], tokens: Tensor, places: Tensor) -> Tensor:
        """The top map (1, L, C) with its positions, as B objects see it: (B, L, C).

        maps: what is remembered, each with the keys of its place in time, a tensor for each layer; tokens, places: pointers and
        their positions (K, B, D).
        """
        tokens, seen, x = tokens.transpose(0, 1), (tokens + places).transpose(0, 1), top[:, None]
        count = len(tokens)
        for i, (layer, cross) in enumerate(zip(self.module.layers, self.cross)):
            normed = layer.layer_norm1(x)
            x = x + layer.self_attn(query=normed, key=normed, value=normed, position_embeddings=self.rotary)[0]
            query = self._turned(_heads(cross.q_proj(layer.layer_norm2(x[:, 0])), cross))
            keys = torch.cat([*(m.keys[i] + place[i] for m, place in maps), _heads(cross.k_proj(seen), cross)], 2)
            values = torch.cat([*(m.values[i] for m, _ in maps), _heads(cross.v_proj(tokens), cross)], 2)
            found = scaled_dot_product_attention(query.expand(count, -1, -1, -1), keys, values)
            x = x + cross.o_proj(found.transpose(1, 2).flatten(2))[:, None]
            x = x + layer.linear2(layer.activation(layer.linear1(layer.layer_norm3(x))))
        attended: Tensor = self.module.layer_norm(x[:, 0])
        return attended

    def _turned(self, x: Tensor) -> Tensor:
        """x (..., L, C / n), turned by its places."""
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turn).flatten(-2).type_as(x)


def _heads(x: Tensor, attention: Any) -> Tensor:
    """(B, L, C) as (B, n, L, C / n)."""
    return x.view(*x.shape[:-1], attention.num_attention_heads, -1).transpose(1, 2)
