"""The tracker `gdino-queries` of a tiny ReferDINO, on drawn scenes, and sentences for it."""

from __future__ import annotations

from typing import Any

from released_referdino import SMALL, shared_upstream

from rvos_cache.contracts.scene import make_scene
from rvos_cache.settings import build
from rvos_cache.trackers.referdino.settings import GdinoQueriesSettings
from rvos_cache.trackers.referdino.tracker import GdinoQueries
from rvos_cache.types import Expression, Video

TEXTS = ("the red square", "a dog moving left, and the bird", "a bird? the blue dog")
SCENE = "rvos_cache.contracts.scene:SceneDataset"


def expressions(*texts: str) -> list[Expression]:
    return [Expression("v", str(i), text, ()) for i, text in enumerate(texts)]


def make_tracker(**settings: Any) -> GdinoQueries:
    values = {"checkpoint": shared_upstream(), "masks": "head", **SMALL, **settings}
    return GdinoQueries(build(GdinoQueriesSettings, values, "gdino-queries"))


def scene(frames: int = 5, size: tuple[int, int] = (41, 63)) -> Video:
    return make_scene(frames, True, size)[0]
