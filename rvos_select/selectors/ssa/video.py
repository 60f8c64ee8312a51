"""SSA's sequential alignment: frame queries linked to trajectories, enhanced along time, ensembled to video queries and decoded
(Pan et al., CVPR 2025, section 3.3, Eqs. 5 to 9).

Letters: B clips (of K layers: K·B), T frames, Q queries of a frame, C channels. True means real in every mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_select.losses.matching import assign
from rvos_select.selectors.ssa.blocks import CrossAttention, FeedForward, Mlp, SelfAttention, sequence_positions

FIRST_KERNEL, SECOND_KERNEL = 5, 3
"""Frames that the two convolutions along time read."""
Ensemble = Literal["weighted", "text"]


@dataclass(frozen=True)
class Presence:
    """Where trajectories are real. frames: bool (B, T), False in frames that pad a shorter video; tracks: bool (B, T, Q), False
    where a track is absent from a frame, and in padding."""

    frames: Tensor
    tracks: Tensor


class VideoPart(nn.Module):
    """Linking, enhancement, ensemble, decoder and heads.

    slots: number of frame queries, each with learned vectors; 0: the caller gives positions (tracks have no slots) and there
    are no mask heads.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        layers: int,
        slots: int,
        link: bool = True,
        temporal: bool = True,
        ensemble: Ensemble = "weighted",
    ) -> None:
        super().__init__()
        self.linked, self.temporal, self.begin = link, temporal, ensemble
        self.input_proj_dec = nn.Linear(channels, channels)
        convs = (nn.Conv1d(channels, channels, kernel) for kernel in (FIRST_KERNEL, SECOND_KERNEL))
        self.short_temporal = nn.Sequential(next(convs), nn.ReLU(), next(convs))
        self.temporal_norm = nn.LayerNorm(channels)
        self.long_temporal = SelfAttention(channels)
        self.time_aware_attn = nn.Linear(channels, 1)
        self.fusion = nn.ModuleList(CrossAttention(channels) for _ in range(layers))
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(channels) for _ in range(layers))
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(channels) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(channels, hidden) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.query_embed = nn.Embedding(slots, channels) if slots else None
        self.fq_pos = nn.Embedding(slots, channels) if slots else None
        self.class_embed = nn.Linear(channels, 2)
        self.mask_embed = Mlp(channels, channels, channels, channels) if slots else None
        self.sim_embed_frame, self.sim_embed_clip = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def project(self, queries: Tensor) -> Tensor:
        """Frame queries (B, T, Q, C) in the channels of this part."""
        projected: Tensor = self.input_proj_dec(queries)
        return projected

    def link(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Trajectories of x (B, T, Q, C), and their order int64 (B, T, Q): linked[b, t, n] = x[b, t, order[b, t, n]].

        Each frame is matched one-to-one to the linked frame before it by the cosine (Eq. 5); the first keeps its order.
        """
        b, t, q, c = x.shape
        order = torch.arange(q, device=x.device).expand(b, t, q)
        if not self.linked or t == 1:
            return x, order
        unit = F.normalize(x.detach().float(), dim=-1)
        costs = (1 - unit[:, :-1] @ unit[:, 1:].transpose(2, 3)).cpu()
        columns = torch.empty(b, t, q, dtype=torch.long)
        columns[:, 0] = torch.arange(q)
        for row in range(b):
            for frame in range(1, t):
                # The linked frame before is the frame before with its queries in another order.
                columns[row, frame] = assign(costs[row, frame - 1][columns[row, frame - 1]])[1]
        order = columns.to(x.device)
        return x.gather(2, order[..., None].expand(-1, -1, -1, c)), order

    def frame_embed(self, linked: Tensor) -> Tensor:
        """Embeddings (B, T, Q, C) of linked queries, which the similarity loss compares with `heads`' of the video queries."""
        embedded: Tensor = self.sim_embed_frame(linked)
        return embedded

    def enhance(self, linked: Tensor, presence: Presence | None = None) -> Tensor:
        """Trajectories (B, T, Q, C) after convolutions and self-attention along time (Eqs. 6 and 7)."""
        if not self.temporal:
            return linked
        b, t, q, c = linked.shape
        first, _, second = self.short_temporal
        rows = linked if presence is None else linked.masked_fill(~presence.tracks[..., None], 0.0)
        rows = rows.permute(0, 2, 3, 1).flatten(0, 1)
        frames = None if presence is None else presence.frames.repeat_interleave(q, 0)
        for conv, kernel in ((first, FIRST_KERNEL), (second, SECOND_KERNEL)):
            rows = _replicated(rows if conv is first else F.relu(rows), frames)
            rows = conv(F.pad(rows, (kernel // 2, kernel // 2), mode="replicate"))
        y = self.temporal_norm(linked + rows.unflatten(0, (b, q)).permute(0, 3, 1, 2))
        along = y.transpose(1, 2).flatten(0, 1)
        mask = None if presence is None else presence.tracks.transpose(1, 2).flatten(0, 1)
        z = self.long_temporal(along, sequence_positions(t, c, y.device), mask)
        out: Tensor = z.unflatten(0, (b, q)).transpose(1, 2)
        return out

    def ensemble(self, x: Tensor, presence: Presence | None = None) -> tuple[Tensor, Tensor]:
        """Video queries (B, Q, C) of trajectories x (B, T, Q, C), and the weight of each frame, (B, T, Q), which sum to 1 (Eq. 8).

        A trajectory that is absent from all frames has equal weights in the frames of its video.
        """
        scores = self.time_aware_attn(x)[..., 0].float()
        if presence is not None:
            absent = ~presence.tracks.any(1, keepdim=True)
            usable = presence.tracks | (absent & presence.frames[..., None])
            scores = scores.masked_fill(absent, 0.0).masked_fill(~usable, -torch.inf)
        weights = scores.softmax(1)
        return (weights[..., None].to(x.dtype) * x).sum(1), weights

    def first_queries(self, x: Tensor, text: Tensor, presence: Presence | None = None) -> Tensor:
        """The video queries (B, Q, C) that `decode` begins with: of the trajectories, or the mean sentence for every query."""
        if self.begin == "weighted":
            return self.ensemble(x, presence)[0]
        real = torch.ones_like(text[..., :1]) if presence is None else presence.frames[..., None].to(text.dtype)
        mean = (text * real).sum(1) / real.sum(1).clamp(min=1)
        return mean[:, None].expand(-1, x.shape[2], -1)

    def decode(
        self,
        q_v: Tensor,
        x: Tensor,
        text: Tensor,
        position: Tensor | None = None,
        key_position: Tensor | None = None,
        presence: Presence | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """The video queries after each layer and the shared norm, (layers, B, Q, C).

        q_v (B, Q, C), x (B, T, N, C) trajectories, text (B, T, C) the sentence of each frame. Without slots: position (B, Q, C)
        of the queries, key_position (B, T, N, C) of the trajectories. real: bool (B, Q), the queries that others attend to.
        """
        if self.query_embed is not None and self.fq_pos is not None:
            position, key_position = self.query_embed.weight, self.fq_pos.weight.expand_as(x)
        assert key_position is not None
        keys, places = x.flatten(1, 2), key_position.flatten(1, 2)
        frames = None if presence is None else presence.frames
        tracks = None if presence is None else presence.tracks.flatten(1)
        layers = []
        for read, cross, attend, feed in zip(
            self.fusion,
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
        ):
            q_v = cross(read(q_v, text, position, None, frames), keys, position, places, tracks)
            q_v = feed(attend(q_v, position, real))
            layers.append(self.decoder_norm(q_v))
        return torch.stack(layers)

    def heads(self, layers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of video queries (..., C): logits (..., 2), referred and none; mask embeddings (..., C), without slots empty; embeddings
        (..., C) for the similarity loss."""
        mask_embed = layers[..., :0] if self.mask_embed is None else self.mask_embed(layers)
        return self.class_embed(layers), mask_embed, self.sim_embed_clip(layers)


def _replicated(rows: Tensor, frames: Tensor | None) -> Tensor:
    """rows (R, C, T) whose padding, False in frames (R, T), has the value of the last real frame, as replicate padding gives it."""
    if frames is None or bool(frames.all()):
        return rows
    last = frames.sum(1).clamp(min=1) - 1
    values = rows.gather(2, last[:, None, None].expand(-1, rows.shape[1], 1))
    return torch.where(frames[:, None], rows, values)
