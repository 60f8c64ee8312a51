"""GroundingDINO's decoder with confidence-aware query pruning (ReferDINO, section 3.3): each layer passes on its best queries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rvos_cache.trackers.referdino.boxes import EPS, refined, sine_positions

PruneScore = Literal["code_gate", "paper_eq4", "random"]
"""code_gate: the released code's score, the one behind the published weights and numbers; paper_eq4: Eq. 4; random: Table 5."""


@dataclass(frozen=True)
class PrunedLayer:
    """The surviving queries of a decoder layer, q of them, best first.

    hs: (B, q, C), after the decoder's shared LayerNorm; reference: (B, q, 4), their boxes (cxcywh) before the layer's own
    refinement; index: int64 (B, q), their places among the first queries.
    """

    hs: Tensor
    reference: Tensor
    index: Tensor


def prune_decoder(
    decoder: Any,
    *,
    hidden: Tensor,
    memory: Tensor,
    real: Tensor,
    reference: Tensor,
    shapes: Sequence[tuple[int, int]],
    valid_ratios: Tensor,
    text: Tensor,
    text_mask: Tensor,
    keep: float = 0.5,
    score: PruneScore = "code_gate",
    eps: float = EPS,
    seed: int = 0,
) -> list[PrunedLayer]:
    """Run a decoder; each layer keeps ceil(keep * n) of its n queries, the last layer too.

    decoder: transformers' `GroundingDinoDecoder` with `bbox_embed`; hidden: (B, Q, C), first queries; memory: (B, S, C), encoded
    image with mask real: bool (B, S); reference: (B, Q, 4), first boxes (cxcywh); shapes: height and width of each level of the
    memory; valid_ratios: (B, levels, 2), real part of each level's width and height; text: (B, L, C) with mask text_mask:
    bool (B, L); masks are True where real; eps: limit of the inverse sigmoid; seed: of the random scores, which are the same for
    every element of a batch. Gradients reach `hs`, not the references; scores have none. A query whose score is NaN comes last.
    Raises ValueError if `keep` is not in (0, 1], `score` is unknown, or the decoder has no box heads.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be in (0, 1], is {keep}")
    if decoder.bbox_embed is None:
        raise ValueError("the decoder has no bbox_embed; take it from a GroundingDinoForObjectDetection")
    sizes = torch.tensor([tuple(shape) for shape in shapes], dtype=torch.long, device=memory.device)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    inputs = {
        "spatial_shapes": sizes, "spatial_shapes_list": [tuple(shape) for shape in shapes], "level_start_index": starts,
        "vision_encoder_hidden_states": memory, "vision_encoder_attention_mask": real, "text_encoder_hidden_states": text,
        # One row for all queries: transformers' own repeats it `num_queries` times, which fits no pruned layer.
        "text_encoder_attention_mask": (~text_mask)[:, None, None].to(text.dtype) * torch.finfo(text.dtype).min,
        "output_attentions": True,
    }  # fmt: skip
    ratios = torch.cat([valid_ratios, valid_ratios], -1)[:, None]
    index = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for layer, box_head in zip(decoder.layers, decoder.bbox_embed):
        levels = reference[:, :, None] * ratios
        positions = decoder.reference_points_head(sine_positions(levels[:, :, 0], hidden.shape[-1]))
        hidden, to_queries, to_text = layer(hidden, positions, reference_points=levels, **inputs)[:3]
        # Which queries survive does not depend on autocast, but for what it did before.
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            scores = _scores(score, hidden, to_queries, to_text, text, text_mask, generator)
            kept = _best(scores, math.ceil(scores.shape[1] * keep))
        hidden, reference, index = (_rows(x, kept) for x in (hidden, reference, index))
        layers.append(PrunedLayer(decoder.layer_norm(hidden), reference, index))
        reference = refined(box_head(hidden), reference, eps).detach()
    return layers


def prune_call(decoder: Any, inputs: Mapping[str, Any], *, keep: float, score: PruneScore, seed: int = 0) -> list[PrunedLayer]:
    """`prune_decoder` with the arguments that transformers' GroundingDinoModel calls its decoder with."""
    return prune_decoder(
        decoder,
        hidden=inputs["inputs_embeds"],
        memory=inputs["vision_encoder_hidden_states"],
        real=inputs["vision_encoder_attention_mask"],
        reference=inputs["reference_points"],
        shapes=inputs["spatial_shapes_list"],
        valid_ratios=inputs["valid_ratios"],
        text=inputs["text_encoder_hidden_states"],
        text_mask=~inputs["text_encoder_attention_mask"],
        keep=keep,
        score=score,
        seed=seed,
    )


def _scores(
    kind: str, hidden: Tensor, to_queries: Tensor, to_text: Tensor, text: Tensor, text_mask: Tensor, generator: torch.Generator
) -> Tensor:
    """Scores (B, Q) of the outputs hidden (B, Q, C) of a layer, from its attention weights to_queries (B, heads, Q, Q) and
    to_text (B, heads, Q, L)."""
    batch, number = hidden.shape[:2]
    if kind == "random":
        return torch.rand(number, generator=generator).to(hidden.device).expand(batch, number)
    # What a query receives from the others, not from itself.
    between = to_queries.float().mean(1)
    received = between.sum(1) - between.diagonal(dim1=1, dim2=2)
    pads = ~text_mask[:, None]
    if kind == "paper_eq4":
        return received / max(number - 1, 1) + to_text.float().mean(1).masked_fill(pads, 0).amax(-1)
    if kind == "code_gate":
        logits = hidden.float() @ text.float().transpose(1, 2)
        # Finite, so that a text of pads alone gives equal logits.
        logits = logits.masked_fill(pads, torch.finfo(logits.dtype).min).amax(-1)
        return (received.softmax(-1) + logits.softmax(-1)) / 2
    raise ValueError(f"score must be code_gate, paper_eq4 or random, is {kind!r}")


def _best(scores: Tensor, number: int) -> Tensor:
    """Places (B, number) of the largest scores (B, Q), largest first, the lowest place first among equal ones; NaN last."""
    return scores.nan_to_num(-torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, :number]


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """Entries `places` (B, q) of x (B, Q, ...) along its second axis."""
    return x.take_along_dim(places.view(*places.shape, *[1] * (x.ndim - 2)), 1)
