"""The VITA head: from the frame queries of a clip to its video queries, their classes and their mask embeddings.

Heo et al., "VITA: Video Instance Segmentation via Object Token Association", NeurIPS 2022, section 3.2, and the evaluation path
of the released code, for a batch of clips. Letters: B clips, T frames, Nf frame queries, Nv video queries, C channels, K classes,
h w cells of the stride-4 map. Parameters have their released names without "vita_module.".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rvos_cache.trackers.mask2former.layers import CrossAttention, FeedForward, Mlp, SelfAttention, check_heads
from rvos_cache.trackers.mask2former.released import ReleasedSizes, load_released

KIND = "VITA checkpoint"
PREFIX = "vita_module."
TRAINING_ONLY = ("sim_embed_frame.", "sim_embed_clip.")
"""Prefixes of the released tensors that only the similarity loss uses."""
WINDOW = 6
"""Frames that attend to each other in a layer of the object encoder; as in the released configurations, not in the tensors."""
SHIFT = 3
"""Frames by which the windows of odd layers are shifted."""


@dataclass(frozen=True)
class HeadSizes:
    """The sizes of a head.

    channels: C; map_channels: of the map before its projection; mask_channels: Cm, of mask features and mask embeddings;
    frame_queries: Nf; video_queries: Nv; classes: K, without the void class; hidden: width of the feed-forward layers;
    encoder_layers, decoder_layers: of the object encoder and decoder.
    """

    channels: int
    map_channels: int
    mask_channels: int
    frame_queries: int
    video_queries: int
    classes: int
    hidden: int
    encoder_layers: int
    decoder_layers: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> HeadSizes:
        """Read the sizes from the released tensors, by name without the prefix.

        Raises InputError naming a tensor that is missing or has another number of axes.
        """
        sizes = ReleasedSizes(tensors, KIND, PREFIX)
        video_queries, channels = sizes.of("query_feat.weight", 2)
        mask_channels, map_channels = sizes.of("vita_mask_features.weight", 4)[:2]
        return cls(
            channels=channels,
            map_channels=map_channels,
            mask_channels=mask_channels,
            frame_queries=sizes.of("fq_pos.weight", 2)[0],
            video_queries=video_queries,
            classes=sizes.of("class_embed.weight", 2)[0] - 1,
            hidden=sizes.of("transformer_ffn_layers.0.linear1.weight", 2)[0],
            encoder_layers=sizes.count("enc_self_attn."),
            decoder_layers=sizes.count("transformer_cross_attention_layers."),
        )


@dataclass(frozen=True)
class VideoQueries:
    """The output of the head for B clips.

    q_v: (B, Nv, C), after the last LayerNorm; logits: (B, Nv, K + 1), the void class last; mask_embed: (B, Nv, Cm), whose dot
    product with the mask features of a cell is the mask logit of the query in that cell.
    """

    q_v: Tensor
    logits: Tensor
    mask_embed: Tensor

    def scores(self) -> Tensor:
        """Class scores (B, Nv): the largest probability of a class other than the void (softmax over all K + 1)."""
        return self.logits.softmax(-1)[..., :-1].amax(-1)


class VitaHead(nn.Module):
    """The frozen head in evaluation: only the queries of the last frame-decoder layer, windows shifted in odd layers.

    The released code pads T with zeros to full windows, rolls them in odd layers, and masks the padded frames and the halves
    of the first window. Masked keys have the weight exp(-1000) = 0, so every frame attends to exactly the frames of its own
    window: 0-5, 6-11, ... in even layers and 0-2, 3-8, 9-14, ... in odd layers. Here the same is computed without padding.
    """

    def __init__(self, sizes: HeadSizes) -> None:
        super().__init__()
        self.sizes = sizes
        c, hidden = sizes.channels, sizes.hidden
        self.input_proj_dec = nn.Linear(c, c)
        self.enc_self_attn = nn.ModuleList(SelfAttention(c) for _ in range(sizes.encoder_layers))
        self.enc_ffn = nn.ModuleList(FeedForward(c, hidden) for _ in range(sizes.encoder_layers))
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(c) for _ in range(sizes.decoder_layers))
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(c) for _ in range(sizes.decoder_layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(c, hidden) for _ in range(sizes.decoder_layers))
        self.decoder_norm = nn.LayerNorm(c)
        self.query_feat = nn.Embedding(sizes.video_queries, c)
        self.query_embed = nn.Embedding(sizes.video_queries, c)
        self.fq_pos = nn.Embedding(sizes.frame_queries, c)
        self.class_embed = nn.Linear(c, sizes.classes + 1)
        self.mask_embed = Mlp(c, sizes.mask_channels)
        self.vita_mask_features = nn.Conv2d(sizes.map_channels, sizes.mask_channels, kernel_size=1)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> VitaHead:
        """The frozen head of the released tensors `vita_module.*`; tensors of other names are ignored.

        Raises InputError naming a tensor that is missing, unknown, or of a shape that contradicts the others.
        """
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items() if name.startswith(PREFIX)}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING_ONLY)}
        sizes = HeadSizes.of(tensors)
        check_heads(sizes.channels, "VITA head")
        return load_released(lambda: cls(sizes), tensors, KIND, PREFIX)

    def official(self) -> dict[str, Tensor]:
        """The tensors under their released names: the inverse of `from_official`."""
        return {PREFIX + name: tensor for name, tensor in self.state_dict().items()}

    def forward(self, q_f: Tensor) -> VideoQueries:
        """The video queries of clips q_f (B, T, Nf, C), raw frame queries; clips do not influence each other.

        Raises ValueError for another number of frame queries or channels, or if T is 0.
        """
        expected = (self.sizes.frame_queries, self.sizes.channels)
        if q_f.ndim != 4 or tuple(q_f.shape[2:]) != expected or q_f.shape[1] == 0:
            raise ValueError(f"expected frame queries (B, T, {expected[0]}, {expected[1]}) with T > 0, got {tuple(q_f.shape)}")
        x = self.input_proj_dec(q_f)
        for i, (attend, feed) in enumerate(zip(self.enc_self_attn, self.enc_ffn)):
            x = feed(_in_windows(attend, x, SHIFT if i % 2 else 0))
        batch, frames = x.shape[:2]
        memory = x.flatten(1, 2)
        positions = self.fq_pos.weight.repeat(frames, 1)
        query = self.query_feat.weight.expand(batch, -1, -1)
        query_position = self.query_embed.weight
        for cross, attend, feed in zip(
            self.transformer_cross_attention_layers, self.transformer_self_attention_layers, self.transformer_ffn_layers
        ):
            query = cross(query, query + query_position, memory + positions, memory)
            query = feed(attend(query, query_position))
        q_v = self.decoder_norm(query)
        return VideoQueries(q_v, self.class_embed(q_v), self.mask_embed(q_v))

    def mask_features(self, maps: Tensor) -> Tensor:
        """Mask features (T, h, w, Cm), channels last, of the pixel decoder's stride-4 maps (T, C, h, w) before Mask2Former's
        own mask projection."""
        return self.vita_mask_features(maps).permute(0, 2, 3, 1)


def _in_windows(attend: nn.Module, x: Tensor, first: int) -> Tensor:
    """Apply `attend` (rows, tokens, C) within windows of frames of x (B, T, Nf, C).

    The first window has `first` frames, or WINDOW frames if `first` is 0.
    """
    batch, frames, _, channels = x.shape
    start = min(first, frames)
    whole = (frames - start) // WINDOW
    parts = []
    for part, windows in zip(torch.split(x, [start, whole * WINDOW, frames - start - whole * WINDOW], 1), (1, whole, 1)):
        if part.shape[1]:
            parts.append(attend(part.reshape(batch * windows, -1, channels)).reshape(part.shape))
    return torch.cat(parts, 1)
