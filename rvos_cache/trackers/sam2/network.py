"""SAM 2's modules on the objects of one prompt frame as one batch; transformers' own `forward` loops over the objects.

Equal to Meta's `SAM2VideoPredictor` (Ravi et al. 2024), as tests with recorded values check. Where transformers' port differs,
this follows Meta's code; comments say where.
Letters: B objects, C channels of a pointer and of the top map, D channels of a memory, h w its cells, S the side of the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rvos_cache.trackers.sam2.attention import POSITION_SCALE, KeyValues, MemoryAttention
from rvos_cache.trackers.sam2.features import Features

NO_OBJECT = -1024.0
"""Logit of every pixel of an object that is not visible."""
PROMPTED = 10.0
"""Logit of the pixels of a mask prompt and of its object's score; negated outside the mask and for an empty mask."""


@dataclass(frozen=True)
class Segmented:
    """Objects in one frame: mask logits low (B, 1, S/4, S/4) and high (B, 1, S, S), pointers (B, C), scores (B, 1, 1), logits
    that the object is visible."""

    low: Tensor
    high: Tensor
    pointers: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Memories:
    """What a frame attends to: maps, each with its temporal position; pointers, each (B, C) with its distance in frames. The
    position of the prompt frame's map is 0."""

    maps: Sequence[tuple[int, KeyValues]]
    pointers: Sequence[tuple[int, Tensor]]


class Network:
    """A frozen Sam2VideoModel, called on batches of objects."""

    def __init__(self, model: Any, compiled: bool = False) -> None:
        self.model = model
        self.side = int(model.prompt_encoder.input_image_size)
        self.channels = int(model.hidden_dim)
        # Compile the function, not the module: a compiled module renames its weights, which changes their digest.
        self.image_encoder = torch.compile(model.get_image_features) if compiled else model.get_image_features
        with torch.inference_mode():
            origin = torch.zeros(1, 1, 1, 2, device=model.device)
            label = -torch.ones(1, 1, 1, dtype=torch.int32, device=model.device)
            self.no_points, self.no_mask = model.prompt_encoder(origin, label, None, None)
            self.image_positions = model.get_image_wide_positional_embeddings()
            self.attention = MemoryAttention(model.memory_attention)
            # In float32 and rounded at use, as in Meta's code; transformers computes the angles in the autocast dtype.
            self.top_positions = self._sine_positions(model.vision_encoder.neck.position_encoding)
            self.memory_positions = self._sine_positions(model.memory_encoder.position_encoding)
        self.position_keys: list[Tensor] | None = None

    def _sine_positions(self, encoding: Any) -> Tensor:
        """The position encoding of a map, (1, h * w, its channels) float32."""
        shape = torch.Size((1, self.channels, *self.model.backbone_feature_sizes[-1]))
        positions: Tensor = encoding(shape, self.model.device, torch.float32)
        return positions.flatten(2).transpose(1, 2)

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """The feature levels (B, c, h, w), finest first, of normalised frames (B, 3, S, S) float32."""
        encoded = self.image_encoder(pixels)
        sizes = self.model.backbone_feature_sizes
        return [level.permute(1, 2, 0).unflatten(2, tuple(size)) for level, size in zip(encoded.fpn_hidden_states, sizes)]

    def decode(
        self, features: Features, top: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mask decoder: logits (B, P, M, S/4, S/4), predicted IoU (B, P, M), tokens (B, P, M or 1, C), scores (B, P, 1).

        top: (B, C, h, w); sparse: embeddings (B, P, n, C) of P point prompts; dense: embedding (B, C, h, w) of mask prompts;
        multimask: M = 3 masks, else 1.
        """
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = self.model.mask_decoder(
            image_embeddings=top,
            image_positional_embeddings=self.image_positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=list(features.fine),
        )
        return outputs

    def segment(self, features: Features, top: Tensor, dense: Tensor | None = None, multimask: bool = True) -> Segmented:
        """The objects whose memory-conditioned maps are `top` (B, C, h, w); of several masks the one of highest predicted IoU."""
        count = len(top)
        low, predicted_iou, tokens, scores = self.decode(
            features, top, self.no_points.expand(count, -1, -1, -1), self.no_mask if dense is None else dense, multimask
        )
        visible = scores > 0
        best, rows = predicted_iou[:, 0].argmax(-1), torch.arange(count, device=low.device)
        # Select first: only one of the three masks is resized.
        low = torch.where(visible[..., None], low[rows, 0, best][:, None], NO_OBJECT)
        high = interpolate(low.float(), (self.side, self.side), mode="bilinear", align_corners=False).to(low.dtype)
        token = tokens[rows, 0, best if tokens.shape[2] > 1 else torch.zeros_like(best)]
        return Segmented(low, high, self._pointers(token, visible[:, 0]), scores)

    def from_mask_prompts(self, features: Features, masks: Tensor) -> Segmented:
        """Objects prompted with masks (B, 1, S, S) of 0 and 1: the prompt is the mask, the decoder only makes the pointer.

        An object whose mask is empty is hidden in this frame.
        """
        count = len(masks)
        visible = masks.flatten(1).any(1)[:, None]
        masks = masks.to(features.top.dtype)
        dense = self.model.prompt_encoder.mask_embed(self.model.mask_downsample(masks))
        # The pointer comes from the single-mask token (Meta's `_use_mask_as_output`). transformers does not pass the flag on
        # and takes the best of three tokens.
        top = features.top.expand(count, -1, -1, -1)
        pointers = self.segment(features, top, dense, multimask=False).pointers
        pointers = torch.where(visible, pointers, self.model.no_object_pointer.to(pointers.dtype))
        shape = self.model.prompt_encoder.mask_input_size
        logits = masks.float() * (2 * PROMPTED) - PROMPTED
        low = interpolate(logits, shape, mode="bilinear", antialias=True, align_corners=False)
        # Meta's `propagate_in_video_preflight` encodes the memory from the quarter-size logits, resized back, and not from the
        # prompt itself, as transformers does.
        high = interpolate(low, (self.side, self.side), mode="bilinear", align_corners=False).to(masks.dtype)
        scores = torch.where(visible[..., None], PROMPTED, -PROMPTED)
        return Segmented(low, high, pointers, scores)

    def _pointers(self, tokens: Tensor, visible: Tensor) -> Tensor:
        weight = visible.to(tokens.dtype)
        pointers = self.model.object_pointer_proj(tokens)
        return weight * pointers + (1 - weight) * self.model.no_object_pointer

    def encode_memory(self, features: Features, segmented: Segmented, prompted: bool) -> KeyValues:
        """The memory of the objects in a frame, as later frames attend to it; the map itself is rounded to bfloat16, as in SAM 2.

        prompted: the masks are prompts, so they are binarised.
        """
        top = features.top.expand(len(segmented.high), -1, -1, -1).flatten(2).permute(2, 0, 1)
        memory, _ = self.model._encode_new_memory(top, segmented.high, segmented.scores, prompted)
        if self.position_keys is None:
            # The prompt frame, position 0, has the last of the temporal encodings.
            times = self.model.memory_temporal_positional_encoding.roll(1, 0)[:, :, 0]
            self.position_keys = self.attention.position_keys(self.memory_positions.to(segmented.high.dtype) + times)
        return self.attention.project(memory.float())

    def condition(self, features: Features, memories: Memories, max_pointers: int) -> Tensor:
        """The top map of B objects (B, C, h, w), conditioned on their memories.

        max_pointers: number of frames whose pointers are attended to at most; distances are divided by it.
        """
        assert self.position_keys is not None
        distances, pointers = zip(*memories.pointers)
        tokens, positions = self.model._process_object_pointers(
            list(distances), list(pointers), max_pointers, len(pointers[0]), self.channels, features.top.device
        )
        maps = [(memory, [keys[position] for keys in self.position_keys]) for position, memory in memories.maps]
        top = features.top.flatten(2).transpose(1, 2) + POSITION_SCALE * self.top_positions.to(features.top.dtype)
        conditioned = self.attention.attend(top, maps, tokens, positions)
        return conditioned.transpose(1, 2).reshape(len(conditioned), *features.top.shape[1:])
