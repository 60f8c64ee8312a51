"""What a selector said of every expression of a split.

Layout of `videos/<video>/`: scores f4 [E,N] · candidates b1 [E,N]; where a selector drew its own masks, Q per expression,
instead of choosing tracks: scores and candidates [E,Q], mask_rle u1 [bytes] (turns.py, E*Q masks). Card `extra`: run,
caches, threshold (the selector's default). Attributes: expression ids, frame names, size, whether masks were drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rvos_cache.masks import RleMasks
from rvos_cache.store.mask_codec import pack, unpack
from rvos_cache.store.reader import Cache
from rvos_cache.store.writer import CacheWriter
from rvos_cache.types import Selection


@dataclass(frozen=True)
class SelectionRecord:
    """One video of a selections cache: the E selections of its expressions."""

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]
    selections: tuple[Selection, ...]


def write_selections(writer: CacheWriter, record: SelectionRecord) -> bool:
    """Publish one video; False when another writer was first."""
    said = record.selections
    drawn = [s.masks for s in said if s.masks is not None]
    if drawn and len(drawn) != len(said):
        raise ValueError("either all selections of a video carry drawn masks or none does")
    width = len(said[0].scores) if said else 0
    arrays: dict[str, Any] = {
        "scores": np.stack([s.scores for s in said]) if said else np.zeros((0, width), np.float32),
        "candidates": np.stack([s.candidates for s in said]) if said else np.zeros((0, width), bool),
    }
    if drawn:
        arrays["mask_rle"] = pack(RleMasks.concatenate(drawn))
    attributes = {
        "video": record.video_id,
        "frame_names": list(record.frame_names),
        "size": list(record.size),
        "expression_ids": [s.expression_id for s in said],
        "drawn": bool(drawn),
    }
    return writer.publish(record.video_id, arrays, attributes)


@dataclass(frozen=True)
class SelectionInfo:
    """Names and sizes of a video."""

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]
    expression_ids: tuple[str, ...]


class SelectionCache(Cache):
    """A selections cache, open for reading."""

    kind = "selections"

    def info(self, video_id: str) -> SelectionInfo:
        """Names and sizes of a video."""
        at = self.folder(video_id).attributes
        return SelectionInfo(video_id, tuple(at["frame_names"]), (at["size"][0], at["size"][1]), tuple(at["expression_ids"]))

    def selections(self, video_id: str) -> tuple[Selection, ...]:
        """The selection of each expression, in file order."""
        folder, info = self.folder(video_id), self.info(video_id)
        scores, candidates = folder.array("scores"), folder.array("candidates")
        masks: list[RleMasks | None] = [None] * len(scores)
        if folder.attributes["drawn"]:
            e, q = scores.shape
            whole = RleMasks.from_runs(unpack(folder.array("mask_rle"), (e * q, len(info.frame_names)), info.size))
            masks = [whole.select(range(i * q, (i + 1) * q)) for i in range(e)]
        return tuple(Selection(*row) for row in zip(info.expression_ids, scores, candidates, masks))
