"""SSA's cached form: tracks of any tracker with CLIP features pooled under their masks, instead of frames.

Exact in form: the adapters (all their convolutions see one cell), the text projection, linking (given by the tracks), enhancement,
ensemble, video decoder, class head. Approximated: adapters read plain stages (wiring=side), the gate is that of the frame's token,
group norms are LayerNorms, deformable attention is self-attention among the tokens of a frame, masked attention is attention to the
track's own tokens and the frame's, and positions come from boxes, because tracks have no slots.

Letters: B expressions, T frames, F = B·T, N tracks, P channels of all four stages, C channels of the decoders, S = 4 stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rvos_cache.clip.pooling import BOX, FRAME, NAMES, POOL
from rvos_cache.errors import InputError
from rvos_cache.media.resize import shortest_edge
from rvos_select.data.batch import Batch
from rvos_select.data.cards import CacheCards
from rvos_select.data.pooling import SETTINGS, card_name, check_same_sizes, pooling_of
from rvos_select.selectors.ssa.adapter import Adapter, mixed
from rvos_select.selectors.ssa.blocks import CrossAttention, FeedForward, Mlp, SelfAttention, sines
from rvos_select.selectors.ssa.cached_losses import TrackOutput
from rvos_select.selectors.ssa.clip import Text
from rvos_select.selectors.ssa.config import SsaConfig
from rvos_select.selectors.ssa.pixel_decoder import Fusion
from rvos_select.selectors.ssa.video import Presence

if TYPE_CHECKING:
    from rvos_select.selectors.ssa.selector import Ssa

STRIDES = (4, 8, 16, 32)
"""Input pixels along the side of a cell of each stage."""


class PooledTracks(NamedTuple):
    """pooled: (V, T, N, P), boxes: (V, T, N, 4) as x0, y0, x1, y1 in shares of the frame, zeros where a track is absent, and frame:
    (V, T, P) of whole frames. V: 1 where all expressions share one video, else B."""

    pooled: Tensor
    frame: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, batch: Batch) -> PooledTracks:
        """Of a batch, whose videos may differ in their number of tracks."""
        device, tracks = batch.tokens.device, batch.tokens.shape[1]
        arrays = {name: [array[:].to(device).float() for array in batch.frames[name]] for name in NAMES}
        pooled, boxes = (
            torch.stack([nn.functional.pad(a, (0, 0, 0, tracks - a.shape[1])) for a in arrays[name]]) for name in (POOL, BOX)
        )
        return cls(pooled, torch.stack(arrays[FRAME]), boxes)

    def visible(self) -> Tensor:
        """bool (V, T, N): where a track has pixels."""
        return self.boxes[..., 2] > self.boxes[..., 0]

    def centres(self) -> Tensor:
        """(V, T, N + 1, 2): centres of the boxes and, last, of the frame, as x, y in shares of the frame."""
        centres = (self.boxes[..., :2] + self.boxes[..., 2:]) / 2
        return torch.cat([centres, centres.new_full((*centres.shape[:2], 1, 2), 0.5)], 2)


class FrameOutput(NamedTuple):
    """queries: (layers, F, N, C) after the shared norm; logits: (layers + 1, F, N, 2), the first before any layer; text: (F, C)."""

    queries: Tensor
    logits: Tensor
    text: Tensor


class TrackDecoder(nn.Module):
    """The frame decoder: a query for each track, which reads its own tokens and the frame's."""

    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttention(channels) for _ in range(layers))
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttention(channels) for _ in range(layers))
        self.text_cross_attention_layers = nn.ModuleList(CrossAttention(channels) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(channels, hidden) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(channels)
        self.class_embed = nn.Linear(channels, 2)

    def forward(
        self, x: Tensor, tokens: Tensor, places: Tensor, visible: Tensor, box: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x (F, N, C) first queries, tokens and their places (F, N + 1, S, C), visible bool (F, N + 1), box (F, N, C), text (F, C) ->
        queries (layers, F, N, C) and logits (layers + 1, F, N, 2)."""
        f, n, c = x.shape

        def own_and_frame(values: Tensor) -> Tensor:
            own, frame = values[:, :n], values[:, n:].expand(-1, n, *values.shape[2:])
            return torch.cat([own, frame], 2).flatten(0, 1)

        keys, positions = own_and_frame(tokens), own_and_frame(places)
        mask = own_and_frame(visible[..., None].expand(-1, -1, tokens.shape[2]))
        normed = self.decoder_norm(x)
        queries, logits = [], [self.class_embed(normed)]
        for cross, attend, read, feed in zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.text_cross_attention_layers,
            self.transformer_ffn_layers,
        ):
            x = cross(x.reshape(f * n, 1, c), keys, box.reshape(f * n, 1, c), positions, mask).view(f, n, c)
            x = feed(read(attend(x, box, visible[:, :n]), text[:, None], box))
            normed = self.decoder_norm(x)
            queries.append(normed)
            logits.append(self.class_embed(normed))
        return torch.stack(queries), torch.stack(logits)


class TrackFrames(nn.Module):
    """Tokens of the tracks of a frame, after the adapters, to a query for each track."""

    def __init__(
        self,
        stage_channels: Sequence[int],
        channels: int,
        token_hidden: int,
        token_layers: int,
        fusion_width: int,
        fusion: bool,
        hidden: int,
        layers: int,
        begin_with_box: bool,
    ) -> None:
        super().__init__()
        self.channels, self.begin_with_box = channels, begin_with_box
        self.input_proj = nn.ModuleList(nn.Sequential(nn.Linear(c, channels), nn.LayerNorm(channels)) for c in stage_channels)
        self.level_embed = nn.Parameter(torch.randn(len(stage_channels), channels))
        self.fusion_layers = nn.ModuleList(Fusion(channels, fusion_width) for _ in range(token_layers if fusion else 0))
        self.attention_layers = nn.ModuleList(SelfAttention(channels) for _ in range(token_layers))
        self.ffn_layers = nn.ModuleList(FeedForward(channels, token_hidden) for _ in range(token_layers))
        self.box_embed = Mlp(4, channels, channels)
        self.decoder = TrackDecoder(channels, hidden, layers)

    def box(self, boxes: Tensor) -> Tensor:
        """(..., C): what stands for a slot of a track, of its box (..., 4) as x0, y0, x1, y1 in shares of the frame."""
        embedded: Tensor = self.box_embed(torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1))
        return embedded

    def forward(self, stages: Sequence[Tensor], centres: Tensor, visible: Tensor, boxes: Tensor, text: Tensor) -> FrameOutput:
        """stages: S tensors (F, N + 1, C_i), the frame's token last; centres (F, N + 1, 2), visible bool (F, N + 1), boxes (F, N, 4),
        text (F, C), the projected sentence."""
        levels = len(stages)
        tokens = torch.stack([proj(stage) for proj, stage in zip(self.input_proj, stages)], 2)
        place = torch.cat([sines(2 * math.pi * centres[..., axis], self.channels // 2) for axis in (1, 0)], -1)
        places = place[:, :, None] + self.level_embed
        x, words, mask = tokens.flatten(1, 2), text[:, None], visible.repeat_interleave(levels, 1)
        for i, (attend, feed) in enumerate(zip(self.attention_layers, self.ffn_layers)):
            if self.fusion_layers:
                x, words = self.fusion_layers[i](x, words, mask)
            x = feed(attend(x, places.flatten(1, 2), mask))
        sentence, box = words[:, 0], self.box(boxes)
        first = sentence[:, None].expand(-1, boxes.shape[1], -1)
        if self.begin_with_box:
            first = first + box
        queries, logits = self.decoder(first, x.unflatten(1, (-1, levels)), places, visible, box, sentence)
        return FrameOutput(queries, logits, sentence)


def adapted_stages(
    adapters: nn.ModuleList, stage_channels: Sequence[int], tracks: PooledTracks, text: Text, cells: Sequence[Tensor]
) -> list[Tensor]:
    """The tokens of each stage after its adapter, (F, N + 1, C_i), the frame's last; without adapters as they are pooled.

    tracks: of F / T videos, text: of as many expressions; cells: for each stage (F, N + 1, 2), centres as x, y in cells, from 1.
    """
    frames = tracks.frame.shape[1]
    tokens = torch.cat([tracks.pooled, tracks.frame[:, :, None]], 2).flatten(0, 1)
    plain = list(tokens.split(list(stage_channels), 2))
    if not len(adapters):
        return plain
    sentence, words, mask = (part.repeat_interleave(frames, 0) for part in text)
    out = []
    for adapter, stage, places in zip(adapters, plain, cells):
        assert isinstance(adapter, Adapter)
        position = torch.cat([sines(places[..., axis], adapter.channels // 2) for axis in (1, 0)], -1)
        streams = adapter.streams(stage, position, sentence, words, mask)
        out.append(mixed(adapter.gates(*(stream[:, -1] for stream in streams)), *streams))
    return out


def track_output(ssa: Ssa, batch: Batch, text: Text, layers: int) -> TrackOutput:
    """What the losses read of a batch; text: of its B expressions, layers: K of the frame decoder that are handed on."""
    scene = _Scene.of(batch)
    part = frame_output(ssa, scene.tracks, text, scene)
    queries = part.queries[-layers:]
    decoded = [video_queries(ssa, own, part.text, scene) for own in queries]
    logits, _, clip_embed = ssa.video.heads(torch.stack([own for own, _ in decoded], 1))
    return TrackOutput(part.logits, logits, torch.stack([embed for _, embed in decoded]), clip_embed[-1], scene.presence.tracks)


def track_logits(ssa: Ssa, batch: Batch, text: Text) -> Tensor:
    """Logits (B, N) of the tracks, -inf for one that is no candidate or that no frame shows. Frames are computed in chunks."""
    scene, length, size = _Scene.of(batch), batch.tokens.shape[2], ssa.config.chunk
    queries, sentences = [], []
    for start in range(0, length, size):
        part = PooledTracks(*(array[:, start : start + size] for array in scene.tracks))
        output = frame_output(ssa, part, text, scene)
        queries.append(output.queries[-1])
        sentences.append(output.text)
    layers, _ = video_queries(ssa, torch.cat(queries, 1), torch.cat(sentences, 1), scene)
    logits = ssa.video.class_embed(layers[-1]).float()
    return (logits[..., 0] - logits[..., 1]).masked_fill(~scene.real, -torch.inf)


class _Scene(NamedTuple):
    """tracks: of V videos; candidates: bool (B, N); presence: of B expressions; real: bool (B, N), candidates that some frame shows;
    sizes: (H, W) of the frames of V videos."""

    tracks: PooledTracks
    candidates: Tensor
    presence: Presence
    real: Tensor
    sizes: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, batch: Batch) -> _Scene:
        tracks = PooledTracks.of(batch)
        frames = batch.frame_mask.expand(len(batch), -1)
        shown = tracks.visible() & batch.track_mask[:, None] & frames[..., None]
        return cls(tracks, batch.track_mask, Presence(frames, shown), shown.any(1), batch.sizes)


def frame_output(ssa: Ssa, tracks: PooledTracks, text: Text, scene: _Scene) -> FrameOutput:
    """The frame part of B expressions: queries (layers, B, T, N, C), logits (layers + 1, B, T, N, 2), text (B, T, C)."""
    b, t = len(scene.candidates), tracks.frame.shape[1]
    own = PooledTracks(*(array.expand(b, *array.shape[1:]) for array in tracks))
    shown = own.visible() & scene.candidates[:, None]
    visible = torch.cat([shown, shown.new_ones(b, t, 1)], 2).flatten(0, 1)
    centres = own.centres().flatten(0, 1)
    cells = cells_of_centres(ssa, centres, scene.sizes)
    stages = adapted_stages(ssa.adapters, ssa.config.stage_channels, own, text, cells)
    sentence = ssa.text_projection(text.sentence).repeat_interleave(t, 0)
    out = ssa.tracks(stages, centres, visible, own.boxes.flatten(0, 1), sentence)
    return FrameOutput(*(part.unflatten(-2 if part is out.text else -3, (b, t)) for part in out))


def cells_of_centres(ssa: Ssa, centres: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Centres (F, N + 1, 2) in shares of the frame as cells of each stage, counted from 1 as on a map.

    sizes: (H, W) of the frames of each of V videos, V = 1 or B.
    """
    resized = [input_size(ssa.config, size) for size in sizes]
    pixels = torch.tensor([(w, h) for h, w in resized], device=centres.device, dtype=centres.dtype)
    in_pixels = centres * pixels.repeat_interleave(len(centres) // len(sizes), 0)[:, None]
    return [in_pixels / stride + 0.5 for stride in STRIDES]


def input_size(config: SsaConfig, size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a frame of `size` (H, W) in the input of the CLIP that pooled it, without padding."""
    if config.square:
        return config.square, config.square
    return shortest_edge(size, config.short_side, config.long_side) if config.short_side else size


def video_queries(ssa: Ssa, queries: Tensor, text: Tensor, scene: _Scene) -> tuple[Tensor, Tensor]:
    """The video part on queries (B, T, N, C) and text (B, T, C): its layers (layers, B, N, C), the frames' embeddings (B, T, N, C)."""
    video, presence = ssa.video, scene.presence
    boxes = scene.tracks.boxes.expand(*presence.tracks.shape, 4)
    x = video.project(queries)
    z = video.enhance(x, presence)
    shown = presence.tracks[..., None]
    mean_box = (boxes * shown).sum(1) / shown.sum(1).clamp(min=1)
    first = video.first_queries(z, text, presence)
    layers = video.decode(first, z, text, ssa.tracks.box(mean_box), ssa.tracks.box(boxes), presence, scene.real)
    return layers, video.frame_embed(x)


def pooled_settings(cards: CacheCards) -> dict[str, Any]:
    """`stage_channels` of caches with pooled features, and the size of the frames that CLIP read.

    Raises InputError unless the features are of the four stages of one CLIP, on frames of one size, and the words of its text tower.
    """
    record = pooling_of(cards)
    if len(record["widths"]) != len(STRIDES):
        raise InputError(
            f"{card_name(cards.tracks[0])}: form=cached reads CLIP features of {len(STRIDES)} stages, it has those of "
            f"{len(record['widths'])}; pool with a ConvNeXt CLIP: rvos-cache pool-clip CACHE --set checkpoint=CLIP"
        )
    check_same_sizes(cards.tracks)
    return {"stage_channels": list(record["widths"]), **{name: record[name] for name in SETTINGS}}


def check_cards(cards: CacheCards, channels: Sequence[int]) -> None:
    """Raises InputError for caches whose CLIP features do not have `channels`, or as `pooled_settings`."""
    widths = pooled_settings(cards)["stage_channels"]
    if widths != list(channels):
        raise InputError(
            f"caches with CLIP stages of {widths} channels, the selector has {list(channels)}; pool with its own CLIP"
        )
