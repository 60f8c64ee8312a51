"""SAM 2's modules on the objects of one prompt frame as one batch; transformers' own `forward` loops over the objects.

Equal to Meta's `SAM2VideoPredictor` (Ravi et al. 2024), as tests with recorded values check. Where transformers' port differs,
this follows Meta's code; comments say where.
Letters: B objects, C channels of a pointer and of the top map, D channels of a memory, h w its cells, S the side of the square, P
pointers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rvos_cache.trackers.sam2.attention import POSITION_SCALE, MemoryAttention
from rvos_cache.trackers.sam2.decoder import MaskDecoder
from rvos_cache.trackers.sam2.features import Features
from rvos_cache.trackers.sam2.hiera import ImageEncoder
from rvos_cache.trackers.sam2.memory_encoder import MemoryEncoder
from rvos_cache.trackers.sam2.schedule import slots_of

NO_OBJECT = -1024.0
"""Logit of every pixel of an object that is not visible."""
PROMPTED = 10.0
"""Logit of the pixels of a mask prompt and of its object's score; negated outside the mask and for an empty mask."""


@dataclass(frozen=True)
class Segmented:
    """Objects in one frame, float32: mask logits low (B, 1, S/4, S/4), pointers (B, C), scores (B, 1, 1), logits that the object is
    visible."""

    low: Tensor
    pointers: Tensor
    scores: Tensor


class Network:
    """A frozen Sam2VideoModel, called on batches of objects.

    model: with float32 weights, from which tables and LayerNorms are computed; dtype: of all other computations, for which the
    weights are cast once. Call it without autocast.
    """

    def __init__(self, model: Any, compiled: bool = False, dtype: Any = torch.float32) -> None:
        self.model, self.dtype = model, dtype
        self.weights = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self.side = int(model.prompt_encoder.input_image_size)
        self.channels = int(model.hidden_dim)
        self.num_maps, self.slots = int(model.config.num_maskmem), slots_of(int(model.config.num_maskmem))
        # Compile the function, not the module: a compiled module renames its weights, which changes their digest.
        with torch.inference_mode():
            features = self._own_encoder() or self._library_encoder
            self.image_encoder = torch.compile(features) if compiled else features
            origin = torch.zeros(1, 1, 1, 2, device=model.device)
            label = -torch.ones(1, 1, 1, dtype=torch.int32, device=model.device)
            self.no_points, self.no_mask = (e.to(dtype) for e in model.prompt_encoder(origin, label, None, None))
            self.decoder = MaskDecoder(
                self.weights.mask_decoder, model.mask_decoder, model.get_image_wide_positional_embeddings()
            )
            self.memory_encoder = MemoryEncoder(self.weights.memory_encoder, model.memory_encoder, model.config, self.side)
            self.attention = MemoryAttention(self.weights.memory_attention, model.memory_attention)
            # In float32 and rounded at use, as in Meta's code; transformers computes the angles in the autocast dtype.
            top_positions = self._sine_positions(model.vision_encoder.neck.position_encoding)
            self.top_positions = POSITION_SCALE * top_positions.to(dtype)
            # The prompt frame, position 0, has the last of the temporal encodings.
            times = model.memory_temporal_positional_encoding.roll(1, 0)[:, :, 0]
            memory_positions = self._sine_positions(model.memory_encoder.position_encoding)
            self.position_keys = self.attention.position_keys(memory_positions + times)

    def _sine_positions(self, encoding: Any) -> Tensor:
        """The position encoding of a map, (1, h * w, its channels) float32."""
        shape = torch.Size((1, self.channels, *self.model.backbone_feature_sizes[-1]))
        positions: Tensor = encoding(shape, self.model.device, torch.float32)
        return positions.flatten(2).transpose(1, 2)

    def _own_encoder(self) -> Any:
        """The encoder in half precision, or None: float32 stays with the library's."""
        return ImageEncoder(self.weights, self.model) if self.dtype != torch.float32 and ImageEncoder.reads(self.model) else None

    def _library_encoder(self, pixels: Tensor) -> list[Tensor]:
        encoded = self.weights.get_image_features(pixels).fpn_hidden_states
        sizes = self.model.backbone_feature_sizes
        return [level.unflatten(0, tuple(size)).permute(2, 3, 0, 1) for level, size in zip(encoded, sizes)]

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """The feature levels (B, c, h, w), finest first, in channels-last memory, of normalised frames (B, 3, S, S) float32."""
        levels: list[Tensor] = self.image_encoder(pixels.to(self.dtype))
        return levels

    def embed_prompts(self, points: Tensor | None = None, boxes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sparse and dense embeddings of P points (P, 2) or boxes (P, 4) in pixels of the square; the positions in float32."""
        if points is not None:
            labels = torch.ones_like(points[None, :, None, 0], dtype=torch.int32)
            sparse, dense = self.model.prompt_encoder(points[None, :, None], labels, None, None)
        else:
            sparse, dense = self.model.prompt_encoder(None, None, boxes[None], None)  # type: ignore[index]
        return sparse.to(self.dtype), dense.to(self.dtype)

    def without_memory(self, features: Features) -> Tensor:
        """The top map of a frame that attends to no memory, (1, C, h, w)."""
        return features.top + self.weights.no_memory_embedding.view(1, -1, 1, 1)

    def decode(
        self, features: Features, top: Tensor, sparse: Tensor, dense: Tensor, multimask: bool, best: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See MaskDecoder. top: (N or 1, C, h, w); sparse: (N, n, C); dense: embedding (N or 1, C, h, w) of mask prompts."""
        image = (top + dense).flatten(2).transpose(1, 2).contiguous()
        fine = (features.fine[0], features.fine[1])
        return self.decoder(fine, image, sparse, multimask, best)

    def segment(self, features: Features, top: Tensor, dense: Tensor | None = None, multimask: bool = True) -> Segmented:
        """The objects whose memory-conditioned maps are `top` (B, C, h, w); of several masks the one of highest predicted IoU."""
        sparse = self.no_points[0].expand(len(top), -1, -1)
        low, _, tokens, scores = self.decode(features, top, sparse, self.no_mask if dense is None else dense, multimask, True)
        visible = scores > 0
        # Not torch.where: a scalar would be copied from the host.
        low = low.masked_fill(~visible[..., None, None], NO_OBJECT)
        return Segmented(low, self._pointers(tokens[:, 0], visible), scores[..., None])

    def from_mask_prompts(self, features: Features, masks: Tensor) -> Segmented:
        """Objects prompted with masks (B, 1, S, S) of 0 and 1: the prompt is the mask, the decoder only makes the pointer.

        An object whose mask is empty is hidden in this frame.
        """
        count = len(masks)
        visible = masks.flatten(1).any(1)[:, None]
        masks = masks.to(features.top.dtype)
        dense = self.weights.prompt_encoder.mask_embed(self.weights.mask_downsample(masks))
        # The pointer comes from the single-mask token (Meta's `_use_mask_as_output`). transformers does not pass the flag on
        # and takes the best of three tokens.
        top = features.top.expand(count, -1, -1, -1)
        pointers = self.segment(features, top, dense, multimask=False).pointers
        pointers = torch.where(visible, pointers, self.model.no_object_pointer)
        shape = self.model.prompt_encoder.mask_input_size
        logits = masks.float() * (2 * PROMPTED) - PROMPTED
        low = interpolate(logits, shape, mode="bilinear", antialias=True, align_corners=False)
        # Meta's `propagate_in_video_preflight` encodes the memory from these quarter-size logits, resized back, and not from the
        # prompt itself, as transformers does.
        scores = torch.where(visible[..., None], PROMPTED, -PROMPTED)
        return Segmented(low, pointers, scores)

    def _pointers(self, tokens: Tensor, visible: Tensor) -> Tensor:
        weight = visible.float()
        pointers = self.weights.object_pointer_proj(tokens).float()
        return weight * pointers + (1 - weight) * self.model.no_object_pointer

    def encode_memory(self, features: Features, segmented: Segmented, prompted: bool) -> Tensor:
        """The memory map of the objects in a frame, (B, h * w, D), rounded to bfloat16, as in SAM 2.

        prompted: the masks are prompts, so they are binarised.
        """
        memory = self.memory_encoder(features.top, segmented.low, prompted)
        occluded = self.weights.occlusion_spatial_embedding_parameter
        if occluded is not None:
            memory = memory + (segmented.scores <= 0).to(memory.dtype) * occluded
        return memory.to(torch.bfloat16)

    def pointer_positions(self, distances: Tensor, num_pointers: int) -> Tensor:
        """The position encodings (..., D) of pointers that are `distances` (...) frames away.

        num_pointers: frames whose pointers are attended to at most; distances are divided by it, less one.
        """
        model = self.model
        if not model.config.enable_temporal_pos_encoding_for_object_pointers:
            return torch.zeros(*distances.shape, model.mem_dim, dtype=self.dtype, device=distances.device)
        half = self.channels // 2
        channel = torch.arange(half, dtype=torch.float32, device=distances.device)
        angles = (distances.float() / (num_pointers - 1))[..., None] / 10000 ** (2 * (channel // 2) / half)
        encoded = torch.cat([angles.sin(), angles.cos()], -1)
        positions: Tensor = model.temporal_positional_encoding_projection_layer(encoded)
        return positions.to(self.dtype)

    def condition(self, features: Features, pointers: Tensor, positions: Tensor, bias: Tensor, maps: dict[str, Any]) -> Tensor:
        """The top map of B objects (B, C, h, w), conditioned on their memories.

        pointers: (P, B, C); positions: their encodings (P, D); bias: float32 (P,), 0, or -inf where there is none; maps: `ring`,
        `distances` and `count` of MemoryAttention.attend.
        """
        # A pointer is as many tokens as its channels are memories'.
        splits = self.channels // self.model.mem_dim
        tokens = pointers.to(self.dtype).transpose(0, 1).unflatten(2, (splits, -1)).flatten(1, 2)
        positions = positions[:, None].expand(-1, splits, -1).flatten(0, 1)
        bias = bias[:, None].expand(-1, splits).flatten()
        top = features.top.flatten(2).transpose(1, 2) + self.top_positions
        keys = self.position_keys
        conditioned = self.attention.attend(top, tokens=tokens, token_positions=positions, bias=bias, position_keys=keys, **maps)
        return conditioned.transpose(1, 2).unflatten(2, features.top.shape[2:])
