"""What DeRVOS reads of its caches: which parts, which settings follow from their cards, and which caches fit together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rvos_cache.errors import InputError
from rvos_cache.store import Card
from rvos_cache.text.beit3.network import PATCH
from rvos_select.data.batch import Batch
from rvos_select.data.pixels import card_has_pixels
from rvos_select.selectors.dervos.config import DervosConfig

MAPS = "f_mask_pooled"
"""Feature (T, h, w, Cm): the segmenter's mask features, averaged over the cells of a square grid."""
QUERIES = "q_v"
"""Feature (Nv, C) of a VITA cache; `query` (N,) says which one each track was made of."""
FIX_FRAMES = "extract with --tracker frames --set square={side} --set resample={resample}"


def settings_of(values: Mapping[str, Any], cards: Sequence[Card]) -> dict[str, Any]:
    """Settings that follow from tracks caches. values: those that were given. Raises InputError: queries=q_v without video queries."""
    maps = [spec["dims"] for card in cards for spec in card.feature_specs if spec["name"] == MAPS]
    settings: dict[str, Any] = {"map_channels": _number(maps[0], 3, MAPS) if maps else 0}
    if values.get("queries") == "q_v":
        dims = [spec["dims"] for card in cards for spec in card.feature_specs if spec["name"] == QUERIES]
        if not dims:
            raise InputError(
                f"queries=q_v: no tracks cache declares the feature {QUERIES!r}; give a cache that was extracted with --tracker vita, "
                "or --set config.queries=tokens"
            )
        settings["query_channels"] = _number(dims[0], 1, QUERIES)
    frames = next((card for card in cards if card_has_pixels(card) and not _unchanged(card)), None)
    if values.get("understanding", "beit3") == "beit3" and frames is not None:
        settings |= {"side": _square(frames), "resample": frames.settings.get("resample", "bilinear")}
        default = DervosConfig.model_fields["resample"].default
        if settings["resample"] != default and "resample" not in values:
            fix = FIX_FRAMES.format(side=settings["side"], resample=default)
            warnings.warn(
                f"cache {frames.dataset}/{frames.split} of tracker {frames.producer}: frames resized by {settings['resample']}, BEiT-3 "
                f"was trained with {default}; {fix}, or if it is meant give --set config.resample={settings['resample']}",
                stacklevel=2,
            )
    return settings


def check_cards(cards: Sequence[Card], config: DervosConfig) -> None:
    """Raises InputError for tracks caches whose maps or frames are not those of the settings."""
    reads_maps = config.tais == "full" and bool(config.map_channels)
    frames = next((card for card in cards if card_has_pixels(card) and not _unchanged(card)), None)
    for card in cards:
        where = f"cache {card.dataset}/{card.split} of tracker {card.producer}"
        for spec in card.feature_specs:
            if spec["name"] == MAPS and reads_maps:
                _check_maps(spec["dims"], config, where, frames)
        if config.understanding == "words" or not card_has_pixels(card) or _unchanged(card):
            continue
        size, resample = _square(card), card.settings.get("resample", "bilinear")
        if (size, resample) != (config.side, config.resample):
            fix = FIX_FRAMES.format(side=config.side, resample=config.resample)
            raise InputError(
                f"{where}: frames of {size} x {size} by {resample}, the selector reads {config.side} x {config.side} by "
                f"{config.resample}, and two resamplings differ; {fix}"
            )


def _check_maps(dims: Sequence[str | int], config: DervosConfig, where: str, frames: Card | None) -> None:
    height, width, channels = (_number(dims, axis, MAPS) for axis in (1, 2, 3))
    if height != width:
        raise InputError(f"{where}: {MAPS} of {height} x {width} cells, expected a square; extract with --set pool=20")
    if channels != config.map_channels:
        raise InputError(f"{where}: {MAPS} of {channels} channels, the selector has {config.map_channels}; extract them alike")
    if config.reads_patches and height != config.side // PATCH:
        patches = config.side // PATCH
        read = "of a frame" if frames is None else f"of a frame of the cache {frames.dataset}/{frames.split} of {frames.producer}"
        side = "--set config.side=" if frames is None else "the frames with --tracker frames --set square="
        raise InputError(
            f"{where}: {MAPS} of {height} x {height} cells, BEiT-3 has {patches} x {patches} patches {read} of side {config.side}, "
            f"expected as many (pool = side of the frame / {PATCH}); extract these tracks with --set pool={patches}, or {side}"
            f"{PATCH * height}"
        )


def _unchanged(card: Card) -> bool:
    """Whether a cache holds frames as they are in the dataset, which are resized when they are read."""
    return card.settings.get("short_side") == 0 and not card.settings.get("square")


def _square(card: Card) -> int:
    """The side of the frames of a cache. Raises InputError where they are no squares."""
    side = card.settings.get("square")
    if not isinstance(side, int) or not side:
        raise InputError(
            f"cache {card.dataset}/{card.split} of tracker {card.producer}: its frames are not resized to a square, BEiT-3 reads "
            f"squares; {FIX_FRAMES.format(side=320, resample='bicubic')}"
        )
    return side


def _number(dims: Sequence[str | int], axis: int, name: str) -> int:
    size = dims[axis] if len(dims) > axis else None
    if not isinstance(size, int):
        raise InputError(f"feature {name!r} has the dims {list(dims)}: expected a number at position {axis}; extract it again")
    return size


def video_queries(batch: Batch) -> Tensor:
    """(V, N, T, C): the video query that each track was made of, the same in all frames."""
    query = batch.features["query"].long()
    rows = torch.arange(len(query), device=query.device)[:, None]
    own = batch.features[QUERIES].float()[rows, query]
    return own[:, :, None].expand(-1, -1, batch.tokens.shape[2], -1)
