"""SAM 2's mask decoder on many prompts, with as few passes over the image tokens as its results allow.

Differences from transformers' forward, none in the result: what does not depend on the prompt is computed once (the first layer's
projections of an image that all prompts share, and those of the position codes); transposed convolutions whose kernel is their stride
are linear maps, so the enlarged map stays in the order of its cells; and only the masks that are asked for are multiplied out.
Letters: N prompts, L = h * w image tokens, Q prompt tokens, C channels, M masks, n heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rvos_cache.trackers.sam2.fused import add_norm, attend, mask_logits


class MaskDecoder:
    """A Sam2VideoMaskDecoder. module: with weights in the dtype of computation; exact: the same with float32 weights;
    positions: float32 (1, C, h, w), the position codes of the image."""

    def __init__(self, module: Any, exact: Any, positions: Tensor) -> None:
        self.module, self.exact, self.grid = module, exact, (positions.shape[2], positions.shape[3])
        self.dtype = module.iou_token.weight.dtype
        self.positions = positions.flatten(2).transpose(1, 2).to(self.dtype).contiguous()
        self.tokens = torch.cat([module.obj_score_token.weight, module.iou_token.weight, module.mask_tokens.weight])
        self.enlarge = [_as_linear(layer) for layer in (module.upscale_conv1, module.upscale_conv2)]
        # The networks of the four masks side by side.
        networks = [[net.proj_in, *net.layers, net.proj_out] for net in module.output_hypernetworks_mlps]
        self.networks = [
            (torch.stack([layer.weight.t() for layer in layers]), torch.stack([layer.bias for layer in layers])[:, None])
            for layers in zip(*networks)
        ]
        self.image_weights = [
            _stacked([layer.cross_attn_token_to_image.k_proj, layer.cross_attn_image_to_token.q_proj])
            for layer in module.transformer.layers
        ]

    def __call__(
        self, fine: tuple[Tensor, Tensor], image: Tensor, sparse: Tensor, multimask: bool, best: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits float32 (N, M, 4h, 4w), predicted IoU (N, M), tokens (N, M, C), scores float32 (N, 1) that there is an object.

        fine: maps (1, c, 4h, 4w) and (1, c', 2h, 2w); image: (N or 1, L, C), contiguous, dense prompts added; sparse: (N, n, C);
        multimask: M = 3 masks, else 1, for which there is 1 token; best: of three only the mask of highest predicted IoU.
        """
        module, count = self.module, len(sparse)
        queries, image = self._transform(torch.cat([self.tokens.expand(count, -1, -1), sparse], 1), image)
        masks = queries[:, 2 : 2 + module.num_mask_tokens]
        predicted_iou, scores = module.iou_prediction_head(queries[:, 1]), module.pred_obj_score_head(queries[:, 0]).float()
        kernels = masks.transpose(0, 1)
        for i, (weight, bias) in enumerate(self.networks):
            kernels = torch.baddbmm(bias, kernels.relu() if i else kernels, weight)
        kernels = kernels.transpose(0, 1)
        if multimask:
            masks, predicted_iou, kernels = masks[:, 1:], predicted_iou[:, 1:], kernels[:, 1:]
            if best:
                row = predicted_iou.argmax(1, keepdim=True)
                masks, kernels = (part.gather(1, row[..., None].expand(-1, -1, part.shape[2])) for part in (masks, kernels))
                predicted_iou = predicted_iou.gather(1, row)
            return self._masks(fine, image, kernels), predicted_iou, masks, scores
        logits = self._masks(fine, image, kernels)
        if module.dynamic_multimask_via_stability:
            logits, predicted_iou = self._stable(logits, predicted_iou)
        return logits[:, :1], predicted_iou[:, :1], masks[:, :1], scores

    def _transform(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens (N, Q, C) and image (N, L, C)."""
        transformer, norms = self.module.transformer, self.exact.transformer
        # The few prompt tokens are summed in float32, as under autocast; each is rounded where it is multiplied.
        queries, dtype, exact = tokens.float(), self.dtype, torch.float32
        for i, (layer, norm) in enumerate(zip(transformer.layers, norms.layers)):
            query, value = self._with(queries, tokens), queries.to(dtype)
            if layer.skip_first_layer_pe:
                _, queries = add_norm(_attend(layer.self_attn, value, value, value).float(), None, norm.layer_norm1, keep=False)
            else:
                attended = _attend(layer.self_attn, query, query, value)
                _, queries = add_norm(queries, attended, norm.layer_norm1, exact, keep=False)
            to_image, from_image = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            # Both attentions read the image as it is before this layer.
            projected = linear(image + self.positions, *self.image_weights[i])
            keys, image_queries = projected.split([to_image.internal_dim, from_image.internal_dim], -1)
            query = to_image.q_proj(self._with(queries, tokens))
            attended = to_image.o_proj(_dot(to_image, query, keys, to_image.v_proj(image)))
            _, queries = add_norm(queries, attended, norm.layer_norm2, exact, keep=False)
            _, queries = add_norm(queries, layer.mlp(queries.to(dtype)), norm.layer_norm3, exact, keep=False)
            keys, values = from_image.k_proj(self._with(queries, tokens)), from_image.v_proj(queries.to(dtype))
            attended = from_image.o_proj(_dot(from_image, image_queries, keys, values))
            _, image = add_norm(image, attended, norm.layer_norm4, keep=False)
        last = transformer.final_attn_token_to_image
        attended = _attend(last, self._with(queries, tokens), image + self.positions, image)
        _, queries = add_norm(queries, attended, norms.layer_norm_final_attn, exact, keep=False)
        return queries.to(dtype), image

    def _with(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Queries plus the tokens that they began as."""
        return (queries + tokens).to(self.dtype)

    def _masks(self, fine: tuple[Tensor, Tensor], image: Tensor, kernels: Tensor) -> Tensor:
        """The products of the enlarged image and the kernels (N, M, c) of the masks: logits (N, M, 4h, 4w)."""
        (h, w), count = self.grid, len(image)
        # Each cell becomes 2 x 2, and each of these 2 x 2 again: (h, w, 2, 2, 2, 2).
        middle = fine[1].view(-1, h, 2, w, 2).permute(1, 3, 2, 4, 0).flatten(0, 3)[None]
        finest = fine[0].view(-1, h, 2, 2, w, 2, 2).permute(1, 4, 2, 5, 3, 6, 0).flatten(0, 5)
        enlarged = linear(image, *self.enlarge[0]).view(count, 4 * h * w, -1)
        _, enlarged = add_norm(middle.contiguous(), enlarged, self.exact.upscale_layer_norm, keep=False, gelu=True)
        enlarged = linear(enlarged, *self.enlarge[1]).view(count, 16 * h * w, -1)
        logits = mask_logits(enlarged, finest.contiguous(), kernels)
        return logits.view(count, -1, h, w, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(count, -1, 4 * h, 4 * w)

    def _stable(self, logits: Tensor, predicted_iou: Tensor) -> tuple[Tensor, Tensor]:
        """The first mask, or where it is not stable the best of the others: logits (N, 1, ...) and predicted IoU (N, 1)."""
        best = predicted_iou[:, 1:].argmax(1, keepdim=True) + 1
        delta, first = self.module.dynamic_multimask_stability_delta, logits[:, 0].flatten(1)
        inner, outer = ((first > cut).sum(1).float() for cut in (delta, -delta))
        stable = (inner / outer.clamp(min=1) >= self.module.dynamic_multimask_stability_thresh) | (outer == 0)
        row = best * ~stable[:, None]
        return logits.gather(1, row[..., None, None].expand(-1, -1, *logits.shape[2:])), predicted_iou.gather(1, row)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A Sam2VideoAttention on (N, tokens, C)."""
    attended: Tensor = module.o_proj(_dot(module, module.q_proj(query), module.k_proj(key), module.v_proj(value)))
    return attended


def _dot(module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of projected tokens, each of N or of 1 prompts, (N, tokens, its channels)."""
    count, heads = max(len(query), len(key)), module.num_attention_heads
    parts = (part.unflatten(-1, (heads, -1)).transpose(1, 2).expand(count, -1, -1, -1) for part in (query, key, value))
    return attend(*parts).transpose(1, 2).flatten(2)


def _as_linear(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear map (C) -> (2, 2, c) that a transposed convolution of kernel 2 and stride 2 is."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return weight.contiguous(), layer.bias.repeat(4)


def _stacked(layers: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
