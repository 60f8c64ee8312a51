"""The referring tracker of DVIS++: queries of successive frames become tracks, frame by frame, in evaluation.

Letters: B videos, T frames, N queries and tracks, C2 channels of the tracker (512), K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rvos_cache.trackers.dvis.linking import match_queries, reordered
from rvos_cache.trackers.dvis.queries import KIND
from rvos_cache.trackers.mask2former.layers import CrossAttention, FeedForward, Mlp, SelfAttention, check_heads
from rvos_cache.trackers.mask2former.released import ReleasedSizes, load_released

PREFIX = "tracker."
UNREAD = ("mask_embed.", "mask_feature_proj.")
"""Released tensors after PREFIX that the offline model does not read: its masks are the refiner's."""


@dataclass(frozen=True)
class TrackerState:
    """What the next frame reads of a frame. queries: (B, N, C2) in the order of the tracks; embeds: (B, N, C2), its output."""

    queries: Tensor
    embeds: Tensor


@dataclass(frozen=True)
class TrackedQueries:
    """The output of the tracker.

    embeds: (B, T, N, C2), not normed; logits: (B, T, N, K + 1), the void class last; order: int64 (B, T, N), the query of the frame
    that the track has; state: of the last frame.
    """

    embeds: Tensor
    logits: Tensor
    order: Tensor
    state: TrackerState


class ReferringTracker(nn.Module):
    """The frozen tracker in evaluation, without noise, each video as if alone.

    Zhang et al., "DVIS++: Improved Decoupled Framework for Universal Video Segmentation", section 3.3, and the released code.
    """

    def __init__(self, channels: int, hidden: int, layers: int, classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(channels) for _ in range(layers))
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(channels) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(channels, hidden) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.ref_proj = Mlp(channels, channels)
        self.class_embed = nn.Linear(2 * channels, classes + 1)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> ReferringTracker:
        """The frozen tracker of the released tensors `tracker.*`, except UNREAD; tensors of other names are ignored.

        Raises InputError naming a tensor that is missing, unknown, or of a shape that contradicts the others.
        """
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items() if name.startswith(PREFIX)}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNREAD)}
        sizes = ReleasedSizes(tensors, KIND, PREFIX)
        channels = sizes.of("decoder_norm.weight", 1)[0]
        check_heads(channels, "DVIS++ tracker")
        hidden = sizes.of("transformer_ffn_layers.0.linear1.weight", 2)[0]
        classes = sizes.of("class_embed.weight", 2)[0] - 1
        layers = sizes.count("transformer_cross_attention_layers.")
        return load_released(lambda: cls(channels, hidden, layers, classes), tensors, KIND, PREFIX)

    def official(self) -> dict[str, Tensor]:
        """The tensors under their released names, without those that are not read."""
        return {PREFIX + name: tensor for name, tensor in self.state_dict().items()}

    def forward(self, queries: Tensor, raw: Tensor, state: TrackerState | None = None) -> TrackedQueries:
        """The tracks of queries and raw (B, T, N, C2), as `ReidQueries` returns them.

        state: of the frame before the first; None at the start of the videos. Raises ValueError if the shapes differ, the channels
        are not the tracker's, or T is 0.
        """
        if queries.ndim != 4 or queries.shape != raw.shape or queries.shape[3] != self.channels or queries.shape[1] == 0:
            raise ValueError(
                f"expected queries and raw (B, T, N, {self.channels}) with T > 0, got {tuple(queries.shape)} and {tuple(raw.shape)}"
            )
        embeds, logits, orders = [], [], []
        for t in range(queries.shape[1]):
            output, reference, order = self._frame(queries[:, t], raw[:, t], state)
            embeds.append(output)
            logits.append(self.class_embed(torch.cat([reference, self.decoder_norm(output)], -1)))
            orders.append(order)
            state = TrackerState(reordered(queries[:, t], order), output)
        assert state is not None
        return TrackedQueries(torch.stack(embeds, 1), torch.stack(logits, 1), torch.stack(orders, 1), state)

    def _frame(self, queries: Tensor, raw: Tensor, state: TrackerState | None) -> tuple[Tensor, Tensor, Tensor]:
        """Output and reference (B, N, C2), and order (B, N), of one frame. The class head reads the first layer's reference."""
        if state is None:
            order = torch.arange(raw.shape[1], device=raw.device).expand(len(raw), -1)
            reference = self.ref_proj(raw)
        else:
            order = match_queries(state.queries, queries)
            reference = self.ref_proj(state.embeds)
        output, query = reordered(raw, order), reference
        for cross, attend, feed in zip(
            self.transformer_cross_attention_layers, self.transformer_self_attention_layers, self.transformer_ffn_layers
        ):
            output = feed(attend(cross(output, query, raw, raw)))
            if state is None:
                # A video's first frame has no frame before it, so each layer refers to the output of the layer before.
                query = self.ref_proj(output)
        return output, reference, order
