"""ReferDINO as it is trained: GroundingDINO with LoRA and the head, on all layers of the decoder and on the encoder's proposals.

Letters: B clips, T frames, K = B T, Q queries of a layer, P proposals of the encoder, L text tokens, C channels, H W pixels of the
padded frames, h w cells of the map at stride 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rvos_cache.trackers.referdino.alignment import Confidence, Linking, align
from rvos_cache.trackers.referdino.head import ReferDinoHead
from rvos_cache.trackers.referdino.pruning import PrunedLayer, PruneScore, prune_call
from rvos_cache.trackers.referdino.pyramid import MASK_LEVELS, split_levels
from rvos_cache.trackers.referdino_losses import Predicted

DECODER_OUTPUTS = (
    "last_hidden_state", "intermediate_hidden_states", "intermediate_reference_points", "hidden_states", "attentions",
)  # fmt: skip
"""Fields of the output of transformers' decoder, which its model reads."""


@dataclass(frozen=True)
class LiveOptions:
    """How a clip is computed. keep_ratio, prune_score: as in `prune_decoder`; tracker, alpha, confidence: see `Linking` and `align`;
    checkpointing: compute the activations of encoder, decoder and mask decoder again in the backward pass instead of keeping them."""

    keep_ratio: float = 0.5
    prune_score: PruneScore = "code_gate"
    tracker: Linking = "memory"
    alpha: float = 0.1
    confidence: Confidence = "code_minmax"
    checkpointing: bool = False


@dataclass(frozen=True)
class LiveOutput:
    """What the losses read of B clips.

    layers: of each decoder layer, in order; encoder: its best P proposals, refined, (B, T, P) of each frame's own order; proposals:
    the same with the boxes before refinement, by which they are matched.
    """

    layers: list[Predicted]
    encoder: Predicted
    proposals: Predicted


@dataclass(frozen=True)
class MaskInputs:
    """What the masks of all queries of B clips are computed from.

    features: (K, C, h, w) with mask real: bool (K, h, w); text: (B, T, L, C) with mask text_mask: bool (B, T, L).
    """

    features: Tensor
    real: Tensor
    text: Tensor
    text_mask: Tensor


class LiveReferDino(nn.Module):
    """grounding: a `FourStageGroundingDino`, usually with LoRA; head: a `ReferDinoHead`.

    As in the released model, the head's `box` is the box head of every decoder layer, and its `reference_points_head` that of the
    decoder; both replace what the two had. A new `FourStageGroundingDino` is changed in place; its tensors keep their names.
    """

    def __init__(self, grounding: Any, head: ReferDinoHead, options: LiveOptions) -> None:
        super().__init__()
        self.grounding, self.head, self.options = grounding, head, options
        model = grounding.model
        grounding.bbox_embed = nn.ModuleList([head.box] * len(grounding.bbox_embed))
        model.decoder.bbox_embed = grounding.bbox_embed
        head.reference_points_head = model.decoder.reference_points_head
        self._decoded: tuple[dict[str, Any], list[PrunedLayer]] | None = None
        self._proposed: tuple[Tensor, Tensor] | None = None
        self._frames = 1
        self.prune_seed = 0
        """Seed of the random scores (prune_score=random) of the next call."""
        self._propose = model.generate_encoder_output_proposals
        # Replaced on the object, so that the names of tensors stay those of transformers.
        model.decoder.forward = self._decode
        model.generate_encoder_output_proposals = self._proposals
        model.text_backbone.register_forward_pre_hook(self._once_per_clip, with_kwargs=True)
        model.text_backbone.register_forward_hook(self._for_each_frame)
        if options.checkpointing:
            for layer in (*model.encoder.layers, *model.decoder.layers):
                layer.forward = _checkpointed(layer.forward)

    def forward(self, images: Tensor, real: Tensor, ids: Tensor, words: Tensor) -> LiveOutput:
        """images: (K, 3, H, W), normalised, H and W multiples of 32; real: bool (K, H, W), False in the padding, which is at the right
        and the bottom; ids: int64 (B, L) tokens of the captions with mask words: bool (B, L)."""
        frames = self._frames = len(images) // len(ids)
        rows = {"input_ids": ids, "attention_mask": words.long()}
        outputs = self.grounding.model(
            pixel_values=images, pixel_mask=real.long(), **{name: x.repeat_interleave(frames, 0) for name, x in rows.items()}
        )
        assert self._decoded is not None and self._proposed is not None
        (inputs, layers), proposed = self._decoded, self._proposed
        self._decoded = self._proposed = None
        masks = self._mask_inputs(inputs, real, frames)
        own = self.options
        decoded = [
            layer_output(
                self.head, layer.hs.unflatten(0, (-1, frames)), layer.reference.unflatten(0, (-1, frames)), masks,
                tracker=own.tracker, alpha=own.alpha, confidence=own.confidence, again=own.checkpointing,
            )
            for layer in layers
        ]  # fmt: skip
        return LiveOutput(decoded, *self._encoder_output(outputs, proposed, masks))

    def _mask_inputs(self, inputs: dict[str, Any], real: Tensor, frames: int) -> MaskInputs:
        memory, shapes = inputs["vision_encoder_hidden_states"], inputs["spatial_shapes_list"]
        stage1 = self.grounding.stage1
        features = self.head.features([stage1, *split_levels(memory, shapes[:MASK_LEVELS])])
        cells = nn.functional.interpolate(real[None].float(), size=stage1.shape[-2:])[0].bool()
        text, mask = inputs["text_encoder_hidden_states"], ~inputs["text_encoder_attention_mask"]
        return MaskInputs(features, cells, text.unflatten(0, (-1, frames)), mask.unflatten(0, (-1, frames)))

    def _encoder_output(self, outputs: Any, proposed: tuple[Tensor, Tensor], masks: MaskInputs) -> tuple[Predicted, Predicted]:
        """The encoder's best proposals, refined and not. As for the decoder, masks are drawn around the boxes before refinement."""
        queries, coordinates = proposed
        frames = masks.text.shape[1]
        # The same call as in transformers, whose choice this is.
        places = outputs.enc_outputs_class.max(-1)[0].topk(self.grounding.config.num_queries, dim=1)[1][..., None]
        queries = queries.take_along_dim(places, 1)
        boxes = outputs.enc_outputs_coord_logits.take_along_dim(places, 1).float().sigmoid()
        before = coordinates.take_along_dim(places, 1).float().sigmoid()
        rows = [x.unflatten(0, (-1, frames)) for x in (queries, before, boxes)]
        logits = self.head.logits(rows[0], masks.text, masks.text_mask)
        drawn = draw(self.head, rows[0], rows[1], masks, self.options.checkpointing)
        return Predicted(logits, rows[2], drawn), Predicted(logits, rows[1], drawn)

    def _decode(self, **inputs: Any) -> SimpleNamespace:
        """The decoder's forward: prunes, and keeps inputs and layers for `forward`."""
        own = self.options
        layers = prune_call(
            self.grounding.model.decoder, inputs, keep=own.keep_ratio, score=own.prune_score, seed=self.prune_seed
        )
        self._decoded = inputs, layers
        return SimpleNamespace(**dict.fromkeys(DECODER_OUTPUTS))

    def _proposals(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        self._proposed = self._propose(*arguments, **named)
        return self._proposed

    def _once_per_clip(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """BERT reads a caption once for all frames of its clip, so that its dropout is that of the clip."""
        return tuple(x[:: self._frames] for x in arguments), named

    def _for_each_frame(self, module: nn.Module, arguments: tuple[Any, ...], outputs: Any) -> Any:
        outputs.last_hidden_state = outputs.last_hidden_state.repeat_interleave(self._frames, 0)
        return outputs


def layer_output(
    head: ReferDinoHead,
    hs: Tensor,
    reference: Tensor,
    masks: MaskInputs,
    *,
    tracker: Linking = "memory",
    alpha: float = 0.1,
    confidence: Confidence = "code_minmax",
    again: bool = False,
) -> Predicted:
    """What one decoder layer predicts from its queries hs (B, T, Q, C), in the order of each frame, and reference (B, T, Q, 4).

    A clip of one frame has neither tracker nor enhancer, as in the released `forward`. again: see `draw`.
    """
    text, text_mask = masks.text, masks.text_mask
    if hs.shape[1] > 1:
        if tracker == "memory":
            places = align(hs, text, alpha=alpha, confidence=confidence, text_mask=text_mask)[..., None].to(hs.device)
            hs, reference = hs.take_along_dim(places, 2), reference.take_along_dim(places, 2)
        hs = head.enhance(hs, text[:, :, 0])
    drawn = draw(head, hs, reference, masks, again)
    return Predicted(head.logits(hs, text, text_mask), head.boxes(hs, reference), drawn)


def draw(head: ReferDinoHead, queries: Tensor, reference: Tensor, masks: MaskInputs, again: bool) -> Tensor:
    """Mask logits (B, T, Q, h, w) of queries (B, T, Q, C) around the boxes reference (B, T, Q, 4).

    again: compute activations again in the backward pass.
    """
    rows = [x.flatten(0, 1) for x in (queries, reference)]
    text, text_mask = masks.text.flatten(0, 1), masks.text_mask.flatten(0, 1)
    compute: Callable[..., Tensor] = _checkpointed(head.mask_logits) if again else head.mask_logits
    logits = compute(*rows, masks.features, masks.real, text, text_mask)
    return logits.unflatten(0, queries.shape[:2])


def _checkpointed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose activations are computed again in the backward pass, with the same random numbers."""
    return partial(checkpoint, function, use_reentrant=False)
