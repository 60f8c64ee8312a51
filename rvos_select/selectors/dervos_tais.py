"""TAIS, DeRVOS's trained module: the text is decoupled, tracks are aligned with cells and words (CFMA), and scored by motion (MGIS).

Letters as in `rvos_cache.types`; P cells of a square map in rows, Cq, Cm channels of tracks and of mask features, D of words and of
BEiT-3's patches, C of the module.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rvos_select.selectors.dervos_config import DervosConfig
from rvos_select.selectors.dervos_layers import CfmaLayer, DirectLayer, MgisLayer, SemLayer
from rvos_select.selectors.dmvs_layers import TextProjection
from rvos_select.selectors.ssa.blocks import grid_positions, sines


class Projection(nn.Sequential):
    """Linear and LayerNorm: the channels of an input to those of the module."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(nn.Linear(channels, out), nn.LayerNorm(out))


class Tais(nn.Module):
    """Tracks, maps and words of the frames of a clip to S_f."""

    def __init__(self, config: DervosConfig) -> None:
        super().__init__()
        c = self.config = config
        sees = c.tais == "full" and bool(c.map_channels or c.reads_patches)
        guided = c.tais == "full" and c.mgis
        self.track_projection = Projection(c.query_channels or c.token_channels, c.width)
        self.word_projection = TextProjection(c.word_channels, c.width, c.dropout)
        self.map_projection = Projection(c.map_channels, c.width) if sees and c.map_channels else None
        self.patch_projection = Projection(c.word_channels, c.width) if c.reads_patches else None
        both = self.map_projection is not None and self.patch_projection is not None
        self.fusion = Projection(2 * c.width, c.width) if both else None
        self.motion_query = nn.Embedding(c.motion_queries, c.width) if guided else None
        self.motion_position = nn.Embedding(c.motion_queries, c.width) if guided else None
        self.sem_decoder = nn.ModuleList(SemLayer(c.width, c.hidden) for _ in range(c.sem_layers if guided else 0))
        self.cfma: nn.ModuleList
        if c.tais == "direct":
            self.cfma = nn.ModuleList(DirectLayer(c.width, c.hidden) for _ in range(c.cfma_layers))
        else:
            self.cfma = nn.ModuleList(CfmaLayer(c.width, c.hidden, sees) for _ in range(c.cfma_layers))
        self.mgis = nn.ModuleList(MgisLayer(c.width, c.hidden) for _ in range(c.mgis_layers if guided else 0))
        classes = nn.Linear(c.width, 2)
        nn.init.zeros_(classes.bias)
        self.head = nn.Sequential(nn.LayerNorm(c.width), classes)

    def forward(
        self,
        q: Tensor,
        maps: Tensor | None,
        vision: Tensor | None,
        words: Tensor,
        word_mask: Tensor,
        motion_words: Tensor,
        track_mask: Tensor,
        frame_mask: Tensor,
        times: Tensor,
        is_word: Tensor | None = None,
    ) -> Tensor:
        """S_f, float (B, N, T, 2); shapes as in `Dervos.score`."""
        b, n, t = q.shape[:3]
        tracks = self.track_projection(q)
        if not n:
            out: Tensor = self.head(tracks)
            return out
        own = self.word_projection(words)
        text = own.expand(-1, t, -1, -1)
        x = tracks.transpose(1, 2).flatten(0, 1)
        flat_words, flat_mask = text.flatten(0, 1), word_mask.repeat_interleave(t, 0)
        if self.config.tais == "direct":
            for layer in self.cfma:
                x = layer(x, flat_words, flat_mask)
            return self._scores(x, b)
        cells = self._cells(maps, vision)
        place = None if cells is None else _grid(cells)
        clip = frame_mask if self.config.cfma_scope == "clip" else None
        flat_tracks = track_mask.repeat_interleave(t, 0)
        for layer in self.cfma:
            x, cells, flat_words = layer(x, cells, flat_words, flat_mask, flat_tracks, place, clip)
        if not self.mgis:
            return self._scores(x, b)
        code = _time_code(times, x)
        motion = self._motion(text, word_mask, motion_words, word_mask if is_word is None else is_word, frame_mask, code)
        y = x.unflatten(0, (b, t)).transpose(1, 2)
        for layer in self.mgis:
            y = layer(y, motion, frame_mask, code)
        return self._in_float(y)

    def _cells(self, maps: Tensor | None, vision: Tensor | None) -> Tensor | None:
        """F_f (B·T, P, C): mask features and patches, fused where there are both; None without either."""
        parts = []
        for projection, values in ((self.map_projection, maps), (self.patch_projection, vision)):
            if projection is not None:
                if values is None:
                    raise ValueError(
                        "TAIS was built with maps and with patches of BEiT-3 as its settings say; one of them is None"
                    )
                parts.append(projection(values.flatten(0, 1)))
        if self.fusion is None:
            return parts[0] if parts else None
        fused: Tensor = self.fusion(torch.cat(parts, -1))
        return fused

    def _motion(
        self, text: Tensor, word_mask: Tensor, motion_words: Tensor, is_word: Tensor, frame_mask: Tensor, code: Tensor
    ) -> Tensor:
        """Q'_m (B, Q, C): motion queries after SemDecoder, whose memory is each frame's motion words and sentence."""
        c = self.config
        assert self.motion_query is not None and self.motion_position is not None
        sentence = text[:, :, 0] if c.sentence == "first" else _mean_word(text, word_mask, is_word)
        memory = torch.cat([text, sentence[:, :, None]], 2)
        mask = nn.functional.pad(motion_words & word_mask, (0, 1), value=True)
        if c.text_time == "mean":
            real = frame_mask[:, :, None, None].to(memory.dtype)
            memory, position = (memory * real).sum(1) / real.sum(1).clamp(min=1), None
        else:
            position = code.repeat_interleave(mask.shape[1], 1)
            mask = (mask[:, None] & frame_mask[:, :, None]).flatten(1)
            memory = memory.flatten(1, 2)
        x = self.motion_query.weight.expand(len(text), -1, -1)
        own = self.motion_position.weight[None]
        for layer in self.sem_decoder:
            x = layer(x, memory, mask, own, position)
        return x

    def _scores(self, x: Tensor, expressions: int) -> Tensor:
        """S_f of tracks (B·T, N, C)."""
        return self._in_float(x.unflatten(0, (expressions, -1)).transpose(1, 2))

    def _in_float(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.head(x.float())
        return out


def _mean_word(text: Tensor, word_mask: Tensor, is_word: Tensor) -> Tensor:
    """(B, T, C): the mean of the words of text (B, T, L, C); of a text of special tokens alone, of these; of none zeros."""
    counted = torch.where(is_word.any(1, keepdim=True), is_word & word_mask, word_mask)
    total = text.masked_fill(~counted[:, None, :, None], 0.0).sum(2)
    return total / counted.sum(1).clamp(min=1)[:, None, None]


def _grid(cells: Tensor) -> Tensor:
    """Sine positions (1, P, C) of the cells (B·T, P, C) of a square map. Raises ValueError for another one."""
    side = math.isqrt(cells.shape[1])
    if side * side != cells.shape[1]:
        raise ValueError(f"maps of {cells.shape[1]} cells: expected those of a square, as 400 of 20 x 20")
    return grid_positions((side, side), cells.shape[2], True, cells.device)[None]


def _time_code(times: Tensor, like: Tensor) -> Tensor:
    """Sine code (B, T, C) of the distance of each frame (B, T) from the clip's first."""
    return sines((times - times[:, :1]).float(), like.shape[-1]).to(like.dtype)
