"""VITA's head: from the frame queries of a clip to its video queries, their classes and their mask embeddings.

Heo et al., "VITA: Video Instance Segmentation via Object Token Association", NeurIPS 2022, section 3.2 and the released
code's evaluation path, here for a batch of clips. Letters: B clips, T frames, Nf frame queries, Nv video queries, C channels,
K classes, h w cells of the stride-4 map. Parameters have their released names without "vita_module.".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvos_cache.errors import InputError

PREFIX = "vita_module."
TRAINING_ONLY = ("sim_embed_frame.", "sim_embed_clip.")
"""Beginnings of the released tensors that only the similarity loss reads."""
HEADS = 8
WINDOW = 6
"""Frames that see each other in a layer of the object encoder; neither this nor HEADS can be read from the tensors."""
SHIFT = 3


@dataclass(frozen=True)
class HeadSizes:
    """What the tensors of a head say of its shape.

    channels: C; map_channels: of the map before its projection; mask_channels: of mask features and mask embeddings;
    frame_queries: Nf; video_queries: Nv; classes: K, without the void; hidden: width of the feed-forward layers.
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
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> HeadSizes:
        """From released names without the prefix. Raises InputError naming the tensor that is missing or has other axes."""

        def shape(name: str, axes: int) -> tuple[int, ...]:
            found = shapes.get(name)
            if found is None:
                raise InputError(f"VITA head: the tensor {PREFIX + name!r} is missing; give a whole checkpoint of VITA")
            if len(found) != axes:
                raise InputError(f"VITA head: {PREFIX + name!r} is {found}, wanted {axes} axes; give a checkpoint of VITA")
            return found

        def layers(block: str) -> int:
            return len({name.split(".")[1] for name in shapes if name.startswith(f"{block}.")})

        video_queries, channels = shape("query_feat.weight", 2)
        mask_channels, map_channels = shape("vita_mask_features.weight", 4)[:2]
        return cls(
            channels=channels,
            map_channels=map_channels,
            mask_channels=mask_channels,
            frame_queries=shape("fq_pos.weight", 2)[0],
            video_queries=video_queries,
            classes=shape("class_embed.weight", 2)[0] - 1,
            hidden=shape("transformer_ffn_layers.0.linear1.weight", 2)[0],
            encoder_layers=layers("enc_self_attn"),
            decoder_layers=layers("transformer_cross_attention_layers"),
        )


@dataclass(frozen=True)
class VideoQueries:
    """What the head says of each clip.

    q_v: (B, Nv, C), after the last LayerNorm; logits: (B, Nv, K + 1), the void class last; mask_embed: (B, Nv, Cm), whose dot
    product with the mask features of a cell is the logit of the query's mask there.
    """

    q_v: Tensor
    logits: Tensor
    mask_embed: Tensor

    def scores(self) -> Tensor:
        """(B, Nv): the largest probability of a class that is not the void (softmax over all K + 1)."""
        return self.logits.softmax(-1)[..., :-1].amax(-1)


class VitaHead(nn.Module):
    """The frozen head in its evaluation path: only the last frame-decoder layer's queries, windows shifted in odd layers.

    The released code pads T with zeros to whole windows, rolls them in odd layers and masks the padded frames and the halves
    of the first window. Masked keys weigh exp(-1000) = 0, so every real frame sees exactly the real frames of its own
    window: 0-5, 6-11, ... in even layers and 0-2, 3-8, 9-14, ... in odd ones. That is computed here without the padding.
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
        self.mask_embed = MaskMlp(c, sizes.mask_channels)
        self.vita_mask_features = nn.Conv2d(sizes.map_channels, sizes.mask_channels, kernel_size=1)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor]) -> VitaHead:
        """The frozen head of the released tensors `vita_module.*`; tensors of other names are not looked at.

        Raises InputError naming a tensor that is missing, is not one of a head, or has another shape than the rest say.
        """
        given = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items() if name.startswith(PREFIX)}
        given = {name: tensor for name, tensor in given.items() if not name.startswith(TRAINING_ONLY)}
        sizes = HeadSizes.of({name: tuple(tensor.shape) for name, tensor in given.items()})
        if sizes.channels % HEADS:
            raise InputError(f"VITA head: {sizes.channels} channels cannot be cut into {HEADS} attention heads")
        # On no device: nothing is drawn at random, and nothing is filled twice.
        with torch.device("meta"):
            head = cls(sizes)
        wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
        for name in sorted(wanted.keys() | given.keys()):
            if name not in given:
                raise InputError(f"VITA head: the tensor {PREFIX + name!r} is missing; give a whole checkpoint of VITA")
            if name not in wanted:
                raise InputError(f"VITA head: the tensor {PREFIX + name!r} is none of VITA's head; give a checkpoint of VITA")
            if tuple(given[name].shape) != wanted[name]:
                found = tuple(given[name].shape)
                raise InputError(f"VITA head: {PREFIX + name!r} is {found}, wanted {wanted[name]} as the other tensors say")
        head.load_state_dict({name: tensor.float() for name, tensor in given.items()}, assign=True)
        return head.eval().requires_grad_(False)

    def official(self) -> dict[str, Tensor]:
        """The tensors by their released names: the inverse of `from_official`."""
        return {PREFIX + name: tensor for name, tensor in self.state_dict().items()}

    def forward(self, q_f: Tensor) -> VideoQueries:
        """The video queries of clips q_f (B, T, Nf, C), raw frame queries; each clip as if it were alone.

        Raises ValueError for another number of frame queries or channels, or no frame.
        """
        wanted = (self.sizes.frame_queries, self.sizes.channels)
        if q_f.ndim != 4 or tuple(q_f.shape[2:]) != wanted or q_f.shape[1] == 0:
            raise ValueError(f"frame queries {tuple(q_f.shape)}, wanted (B, T, {wanted[0]}, {wanted[1]}) with T > 0")
        x = self.input_proj_dec(q_f)
        for i, (attend, feed) in enumerate(zip(self.enc_self_attn, self.enc_ffn)):
            x = feed(_in_windows(attend, x, SHIFT if i % 2 else 0))
        batch, frames = x.shape[:2]
        memory = x.flatten(1, 2)
        places = self.fq_pos.weight.repeat(frames, 1)
        query = self.query_feat.weight.expand(batch, -1, -1)
        own = self.query_embed.weight
        for cross, attend, feed in zip(
            self.transformer_cross_attention_layers, self.transformer_self_attention_layers, self.transformer_ffn_layers
        ):
            query = feed(attend(cross(query, memory, own, places), own))
        q_v = self.decoder_norm(query)
        return VideoQueries(q_v, self.class_embed(q_v), self.mask_embed(q_v))

    def mask_features(self, maps: Tensor) -> Tensor:
        """F_mask (T, h, w, Cm), channels last, of the pixel decoder's stride-4 maps (T, C, h, w) before Mask2Former's own
        mask projection."""
        return self.vita_mask_features(maps).permute(0, 2, 3, 1)


def _in_windows(attend: nn.Module, x: Tensor, first: int) -> Tensor:
    """`attend` (rows, tokens, C) within windows of frames of x (B, T, Nf, C); the first has `first` frames, or WINDOW for 0."""
    batch, frames, _, channels = x.shape
    start = min(first, frames)
    whole = (frames - start) // WINDOW
    parts = []
    for part, windows in zip(torch.split(x, [start, whole * WINDOW, frames - start - whole * WINDOW], 1), (1, whole, 1)):
        if part.shape[1]:
            parts.append(attend(part.reshape(batch * windows, -1, channels)).reshape(part.shape))
    return torch.cat(parts, 1)


class Attention(nn.Module):
    """Multi-head attention whose parameters are named as in `nn.MultiheadAttention`.

    Not that class: without gradients it takes a path that writes out all weights, 4 GB for 500 frames of 200 queries.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * channels))
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (B, Q, C), key and value (B, L, C); returns (B, Q, C)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    """LayerNorm(x + attention); a position is added to queries and keys, not to values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attn = Attention(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """x (B, Q, C), position (Q, C)."""
        placed = x if position is None else x + position
        return self.norm(x + self.self_attn(placed, placed, x))


class CrossAttention(nn.Module):
    """LayerNorm(x + attention to memory); positions are added to queries and keys, not to values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, memory: Tensor, position: Tensor, places: Tensor) -> Tensor:
        """x (B, Q, C), memory (B, L, C), position (Q, C), places (L, C)."""
        return self.norm(x + self.multihead_attn(x + position, memory + places, memory))


class FeedForward(nn.Module):
    """LayerNorm(x + W2 ReLU(W1 x))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C)."""
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class MaskMlp(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(channels, width) for width in (channels, channels, out))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) to (..., out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
