"""The temporal refiner of DVIS++: all frames of a track together, then the heads that read the refined tracks alone.

Letters: B videos, T frames, N tracks, C2 channels of the refiner (512), Cm of the mask features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rvos_cache.trackers.dvis.queries import KIND
from rvos_cache.trackers.mask2former.layers import CrossAttention, FeedForward, Mlp, SelfAttention, check_heads
from rvos_cache.trackers.mask2former.released import ReleasedSizes, load_released

PREFIX = "refiner."


@dataclass(frozen=True)
class RefinedTracks:
    """The output of the refiner.

    embeds: (B, T, N, C2), after the last LayerNorm; logits: (B, N, K + 1), the void class last; mask_embed: (B, T, N, Cm), whose dot
    product with the mask features of a cell is the mask logit of the track in that cell.
    """

    embeds: Tensor
    logits: Tensor
    mask_embed: Tensor


class TemporalRefiner(nn.Module):
    """The refiner in evaluation. It is not causal, and has no code of time: order enters through its convolutions alone.

    Zhang et al., "DVIS++: Improved Decoupled Framework for Universal Video Segmentation", section 3.4, and the released code.
    """

    def __init__(self, channels: int, hidden: int, layers: int, classes: int, mask_channels: int) -> None:
        super().__init__()
        self.channels, self.mask_channels, self.classes = channels, mask_channels, classes
        self.transformer_time_self_attention_layers = nn.ModuleList(SelfAttention(channels) for _ in range(layers))
        self.conv_short_aggregate_layers = nn.ModuleList(_convolutions(channels) for _ in range(layers))
        self.conv_norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(layers))
        self.transformer_obj_self_attention_layers = nn.ModuleList(SelfAttention(channels) for _ in range(layers))
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(channels) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(channels, hidden) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.class_embed = nn.Linear(channels, classes + 1)
        self.mask_embed = Mlp(channels, mask_channels)
        self.activation_proj = nn.Linear(channels, 1)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> TemporalRefiner:
        """The frozen refiner of the released tensors `refiner.*`; tensors of other names are ignored.

        Raises InputError naming a tensor that is missing, unknown, or of a shape that contradicts the others.
        """
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items() if name.startswith(PREFIX)}
        sizes = ReleasedSizes(tensors, KIND, PREFIX)
        channels = sizes.of("decoder_norm.weight", 1)[0]
        check_heads(channels, "DVIS++ refiner")
        hidden = sizes.of("transformer_ffn_layers.0.linear1.weight", 2)[0]
        classes = sizes.of("class_embed.weight", 2)[0] - 1
        mask_channels = sizes.of("mask_embed.layers.2.weight", 2)[0]
        layers = sizes.count("transformer_cross_attention_layers.")
        return load_released(lambda: cls(channels, hidden, layers, classes, mask_channels), tensors, KIND, PREFIX)

    def official(self) -> dict[str, Tensor]:
        """The tensors under their released names: the inverse of `from_official`."""
        return {PREFIX + name: tensor for name, tensor in self.state_dict().items()}

    def forward(self, embeds: Tensor, raw: Tensor) -> RefinedTracks:
        """The refined tracks of the tracker's embeds and the raw queries, both (B, T, N, C2), of whole videos.

        Raises ValueError if the shapes differ, the channels are not the refiner's, or T is 0.
        """
        if embeds.ndim != 4 or embeds.shape != raw.shape or embeds.shape[3] != self.channels or embeds.shape[1] == 0:
            raise ValueError(
                f"expected embeds and raw (B, T, N, {self.channels}) with T > 0, got {tuple(embeds.shape)} and {tuple(raw.shape)}"
            )
        return self.heads(self.refine(embeds, raw))

    def refine(self, embeds: Tensor, raw: Tensor) -> Tensor:
        """`RefinedTracks.embeds`, from the arguments of `forward`."""
        batch, frames, tracks, channels = embeds.shape
        memory = raw.flatten(0, 1)
        x = embeds
        for time, convolve, norm, between, cross, feed in zip(
            self.transformer_time_self_attention_layers,
            self.conv_short_aggregate_layers,
            self.conv_norms,
            self.transformer_obj_self_attention_layers,
            self.transformer_cross_attention_layers,
            self.transformer_ffn_layers,
        ):
            # Along the frames of each track, then among the tracks of each frame.
            y = time(x.transpose(1, 2).reshape(batch * tracks, frames, channels))
            y = norm(y + convolve(y.transpose(1, 2)).transpose(1, 2))
            y = y.reshape(batch, tracks, frames, channels).transpose(1, 2).reshape(batch * frames, tracks, channels)
            y = between(y)
            x = feed(cross(y, y, memory, memory)).reshape(batch, frames, tracks, channels)
        return self.decoder_norm(x)

    def heads(self, embeds: Tensor) -> RefinedTracks:
        """Classes and mask embeddings, which are functions of the refined embeds (B, T, N, C2) alone.

        The class is of the mean over time of a track's embeds, weighted by a softmax over time.
        """
        weights = self.activation_proj(embeds).softmax(1)
        return RefinedTracks(embeds, self.class_embed((embeds * weights).sum(1)), self.mask_embed(embeds))


def _convolutions(channels: int) -> nn.Sequential:
    """Over time; the first and the last frame are repeated at the ends."""

    def convolution(kernel: int) -> nn.Conv1d:
        return nn.Conv1d(channels, channels, kernel, padding="same", padding_mode="replicate")

    return nn.Sequential(convolution(5), nn.ReLU(inplace=True), convolution(3))
