"""SAM 2's parts on the objects of one prompt frame as one batch. Its own `forward` takes one object after the other.

Letters: B objects, C channels of a pointer and of the top map, D channels of a memory, h w its places, S the square's side.
Ravi et al. 2024; the order of operations is that of transformers' Sam2VideoModel, to which a test holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rvos_cache.trackers.sam2.attention import POSITION_SHARE, MemoryAttention, Read
from rvos_cache.trackers.sam2.features import Features

NO_OBJECT = -1024.0
"""Logit of every pixel of an object that is not visible."""
PROMPTED = 10.0
"""Logit of a mask prompt's pixels and of its object's score; minus this outside."""


@dataclass(frozen=True)
class Segmented:
    """Objects in one frame: mask logits low (B, 1, S/4, S/4) and high (B, 1, S, S), pointers (B, C), scores (B, 1, 1), logits
    that the object is visible."""

    low: Tensor
    high: Tensor
    pointers: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Remembered:
    """What is read of earlier frames: maps, each with its place in time; pointers, each (B, C) with the number of frames to it.
    The prompted frame has place 0."""

    maps: Sequence[tuple[int, Read]]
    pointers: Sequence[tuple[int, Tensor]]


class Network:
    """A Sam2VideoModel, frozen, whose parts are called on batches of objects."""

    def __init__(self, model: Any, compiled: bool = False) -> None:
        self.model = model
        self.side = int(model.prompt_encoder.input_image_size)
        self.channels = int(model.hidden_dim)
        # The function and not the module, whose weights would get other names and another digest.
        self.read_image = torch.compile(model.get_image_features) if compiled else model.get_image_features
        with torch.inference_mode():
            nowhere = torch.zeros(1, 1, 1, 2, device=model.device)
            label = -torch.ones(1, 1, 1, dtype=torch.int32, device=model.device)
            self.no_points, self.no_mask = model.prompt_encoder(nowhere, label, None, None)
            self.image_positions = model.get_image_wide_positional_embeddings()
            self.attention = MemoryAttention(model.memory_attention)
        self.top_positions: Tensor | None = None
        self.place_keys: list[Tensor] | None = None

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """The levels (B, c, h, w), finest first, of frames (B, 3, S, S) float32."""
        read = self.read_image(pixels)
        if self.top_positions is None:
            self.top_positions = POSITION_SHARE * read.fpn_position_encoding[-1][:, :1].transpose(0, 1)
        sizes = self.model.backbone_feature_sizes
        return [level.permute(1, 2, 0).unflatten(2, tuple(size)) for level, size in zip(read.fpn_hidden_states, sizes)]

    def decode(
        self, features: Features, top: Tensor, sparse: Tensor, dense: Tensor, several: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mask decoder: logits (B, P, M, S/4, S/4), expected IoU (B, P, M), tokens (B, P, M or 1, C), scores (B, P, 1).

        top: (B, C, h, w); sparse: prompts (B, P, n, C) of points; dense: (B, C, h, w) of masks; several: M = 3 masks, else 1.
        """
        found: tuple[Tensor, Tensor, Tensor, Tensor] = self.model.mask_decoder(
            image_embeddings=top,
            image_positional_embeddings=self.image_positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
            high_resolution_features=list(features.fine),
        )
        return found

    def segment(self, features: Features, top: Tensor, dense: Tensor | None = None, several: bool = True) -> Segmented:
        """The objects whose maps are `top` (B, C, h, w), conditioned on their memory; of several masks the one expected best."""
        count = len(top)
        low, expected, tokens, scores = self.decode(
            features, top, self.no_points.expand(count, -1, -1, -1), self.no_mask if dense is None else dense, several
        )
        seen = scores > 0
        best, rows = expected[:, 0].argmax(-1), torch.arange(count, device=low.device)
        # One mask is brought to full size, and not three of which two are dropped.
        low = torch.where(seen[..., None], low[rows, 0, best][:, None], NO_OBJECT)
        high = interpolate(low.float(), (self.side, self.side), mode="bilinear", align_corners=False).to(low.dtype)
        token = tokens[rows, 0, best if tokens.shape[2] > 1 else torch.zeros_like(best)]
        return Segmented(low, high, self._pointers(token, seen[:, 0]), scores)

    def prompted(self, features: Features, masks: Tensor) -> Segmented:
        """Objects prompted with masks (B, 1, S, S) of 0 and 1, none of them empty: the mask is the answer, and the decoder
        only makes the pointer."""
        count = len(masks)
        masks = masks.to(features.top.dtype)
        dense = self.model.prompt_encoder.mask_embed(self.model.mask_downsample(masks))
        pointers = self.segment(features, features.top.expand(count, -1, -1, -1), dense).pointers
        high = masks * (2 * PROMPTED) - PROMPTED
        shape = self.model.prompt_encoder.mask_input_size
        low = interpolate(high.float(), shape, mode="bilinear", antialias=True, align_corners=False).to(high.dtype)
        return Segmented(low, high, pointers, torch.full((count, 1, 1), PROMPTED, device=masks.device))

    def _pointers(self, tokens: Tensor, seen: Tensor) -> Tensor:
        shown = seen.to(tokens.dtype)
        pointers = self.model.object_pointer_proj(tokens)
        return shown * pointers + (1 - shown) * self.model.no_object_pointer

    def remember(self, features: Features, found: Segmented, prompted: bool) -> Read:
        """What later frames read of the objects found in a frame; the memory map itself is bfloat16, as SAM 2 keeps it."""
        top = features.top.expand(len(found.high), -1, -1, -1).flatten(2).permute(2, 0, 1)
        memory, positions = self.model._encode_new_memory(top, found.high, found.scores, prompted)
        if self.place_keys is None:
            # Place 0, the prompted frame, has the last of the times.
            times = self.model.memory_temporal_positional_encoding.roll(1, 0)[:, :, 0]
            self.place_keys = self.attention.place_keys(positions[:, :1].transpose(0, 1) + times)
        return self.attention.read(memory.float())

    def condition(self, features: Features, past: Remembered, longest: int) -> Tensor:
        """The top map of B objects (B, C, h, w) in the light of what is remembered of them.

        longest: frames whose pointers are read at most, by which their distances are measured.
        """
        assert self.place_keys is not None and self.top_positions is not None
        distances, pointers = zip(*past.pointers)
        tokens, places = self.model._process_object_pointers(
            list(distances), list(pointers), longest, len(pointers[0]), self.channels, features.top.device
        )
        maps = [(read, [keys[place] for keys in self.place_keys]) for place, read in past.maps]
        top = features.top.flatten(2).transpose(1, 2) + self.top_positions
        seen = self.attention.attend(top, maps, tokens, places)
        return seen.transpose(1, 2).reshape(len(seen), *features.top.shape[1:])
