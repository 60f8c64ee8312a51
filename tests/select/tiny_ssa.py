"""Small SSA modules, and caches for them: three videos of moving shapes, a tiny CLIP, frames and pooled tracks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tiny_clip import write_tiny_clip

from rvos_cache.exchange.pool_clip import pool_clip
from rvos_cache.extraction import extract, extract_text
from rvos_cache.shapes import write_shapes
from rvos_select.data.caches import TrackSource
from rvos_select.data.cards import CacheCards
from rvos_select.data.collate import Row
from rvos_select.data.samples import load_video
from rvos_select.data.texts import TextSource
from rvos_select.selectors.ssa import Ssa

SPLITS = ("train", "valid_u")
SENTENCES = 4
"""Of each video; the others are removed."""
SMALL: dict[str, Any] = {
    "width": 32, "hidden": 32, "pixel_hidden": 32, "fusion_width": 32, "pixel_layers": 1, "frame_layers": 3, "video_layers": 2,
    "points": 40, "handed_on": 2,
}  # fmt: skip
LIVE = {**SMALL, "queries": 4, "short_side": 64}
CACHED = {**SMALL, "form": "cached"}


@dataclass(frozen=True)
class Tiny:
    """The dataset at `root`, the folder of CLIP, and for each split the caches of frames and words."""

    root: Path
    clip: str
    frames: dict[str, Path]
    texts: dict[str, Path]


@cache
def tiny() -> Tiny:
    """Written once in a process; deleted when it ends."""
    _FOLDERS.append(TemporaryDirectory(prefix="tiny-ssa-"))
    return write_tiny(Path(_FOLDERS[-1].name))


def write_tiny(folder: Path) -> Tiny:
    """Write the dataset, CLIP and the caches into `folder`."""
    root, clip = folder / "data", str(write_tiny_clip(folder / "clip"))
    write_shapes(root, 3, 7)
    for split in SPLITS:
        path = root / split / "meta_expressions.json"
        videos = json.loads(path.read_text())["videos"]
        for video in videos.values():
            video["expressions"] = dict(list(video["expressions"].items())[:SENTENCES])
        path.write_text(json.dumps({"videos": videos}))
    for split in SPLITS:
        extract("mevis", root, split, "frames", folder / split / "frames.zarr", overrides={"short_side": 0})
        extract_text("mevis", root, split, "clip", folder / split / "text.zarr", overrides={"checkpoint": clip})
    return Tiny(root, clip, *({split: folder / split / f"{name}.zarr" for split in SPLITS} for name in ("frames", "text")))


@cache
def pooled() -> dict[str, Path]:
    """For each split the cache of flow tracks with pooled features."""
    caches = {}
    for split, frames in tiny().frames.items():
        flow = frames.with_name("flow.zarr")
        extract("mevis", tiny().root, split, "flow", flow)
        caches[split] = flow.with_name("flow-clip.zarr")
        pool_clip(flow, caches[split], overrides={"checkpoint": tiny().clip, "short_side": 96})
    return caches


def live(seed: int = 0, **config: Any) -> Ssa:
    """A live module in evaluation mode, bound to the tiny CLIP."""
    return _bound({**LIVE, "clip": tiny().clip, **config}, tiny().frames["train"], seed)


def cached(seed: int = 0, **config: Any) -> Ssa:
    """A cached module in evaluation mode, for the pooled tracks."""
    return _bound({**CACHED, **config}, pooled()["train"], seed)


def _bound(config: dict[str, Any], tracks: Path, seed: int) -> Ssa:
    cards = CacheCards(TrackSource(tracks).cards, TextSource([tiny().texts["train"]]).cards)
    torch.manual_seed(seed)
    module = Ssa({**Ssa.config_values(config, cards), **config})
    module.bind(cards)
    return module.eval()


def rows(tracks: Path, module: Ssa, split: str = "train") -> list[Row]:
    """The expressions of a split, with their ground truth and all that the module reads."""
    source, words = TrackSource(tracks), TextSource([tiny().texts[split]])
    thresholds = {cache.path: 0.5 for cache in source.caches}
    samples = [
        load_video(source, words, v, thresholds=thresholds, requires=(*module.requires, "overlap")) for v in source.video_ids()
    ]
    return [(sample, row) for sample in samples for row in range(len(sample.expressions))]


_FOLDERS: list[TemporaryDirectory[str]] = []
