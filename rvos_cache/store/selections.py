"""A selector's scores for every expression of a split.

Layout of `videos/<video>/`: scores f4 [E,N] · candidates b1 [E,N]. If the selector predicts masks of its own, Q per expression,
instead of selecting tracks: scores and candidates [E,Q], mask_rle u1 [bytes] (mask_codec.py, E*Q masks). If its Q queries have
the mask of another track in each frame: scores and candidates [E,Q], parts i4 [E,Q,T], the track, -1 for none. Card `extra`: run,
caches, threshold (the selector's default). Attributes: expressions (id, text, targets), frame names, size, `drawn` (there are
predicted masks), and `made_of`: the content (rvos_cache.store.content) of the video in each tracks cache, and of its words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.masks import RleMasks
from rvos_cache.store.mask_codec import decode_masks, encode_masks
from rvos_cache.store.reader import Cache, VideoFolder
from rvos_cache.store.tracks import expressions_from_json, expressions_to_json
from rvos_cache.store.writer import CacheWriter
from rvos_cache.types import Expression, Selection

PARTS = "parts"
"""The name of the array; selections of tracks, and those of older code, have none."""


@dataclass(frozen=True)
class SelectionRecord:
    """One video of a selections cache: the E selections of its expressions.

    expressions: of the selections, in their order; tracks: the content of the video in each tracks cache that it was made of;
    words: the content of its words. Those three may be empty where selections are made by hand: they are bound to nothing then.
    """

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]
    selections: tuple[Selection, ...]
    expressions: tuple[Expression, ...] = ()
    tracks: tuple[str, ...] = ()
    words: str = ""

    def __post_init__(self) -> None:
        ids = [s.expression_id for s in self.selections]
        if self.expressions and [e.expression_id for e in self.expressions] != ids:
            raise ValueError(f"video {self.video_id}: expressions are not those of the selections, {ids}")
        frames = len(self.frame_names)
        wrong = next((s for s in self.selections if s.parts is not None and s.parts.shape[1] != frames), None)
        if wrong is not None:
            raise ValueError(
                f"video {self.video_id}, expression {wrong.expression_id}: parts of {wrong.parts.shape[1]} frames, expected {frames}"  # type: ignore[union-attr]
            )


def write_selections(writer: CacheWriter, record: SelectionRecord) -> bool:
    """Publish one video. False: another writer was first. Raises ValueError where only some of its selections have masks or parts."""
    selections = record.selections
    masks = [s.masks for s in selections if s.masks is not None]
    parts = [s.parts for s in selections if s.parts is not None]
    for name, arrays_of_queries in (("predicted masks", masks), ("parts", parts)):
        if arrays_of_queries and len(arrays_of_queries) != len(selections):
            raise ValueError(f"either all selections of a video have {name} or none has")
    width = len(selections[0].scores) if selections else 0
    arrays: dict[str, Any] = {
        "scores": np.stack([s.scores for s in selections]) if selections else np.zeros((0, width), np.float32),
        "candidates": np.stack([s.candidates for s in selections]) if selections else np.zeros((0, width), bool),
    }
    if masks:
        arrays["mask_rle"] = encode_masks(RleMasks.concatenate(masks))
    if parts:
        arrays[PARTS] = np.stack(parts)
    attributes = {
        "video": record.video_id,
        "frame_names": list(record.frame_names),
        "size": list(record.size),
        "expression_ids": [s.expression_id for s in selections],
        "expressions": expressions_to_json(record.expressions),
        "made_of": {"tracks": list(record.tracks), "words": record.words},
        "drawn": bool(masks),
    }
    return writer.publish(record.video_id, arrays, attributes)


@dataclass(frozen=True)
class SelectionInfo:
    """Names and sizes of a video; expressions, tracks, words: as in SelectionRecord."""

    video_id: str
    frame_names: tuple[str, ...]
    size: tuple[int, int]
    expression_ids: tuple[str, ...]
    expressions: tuple[Expression, ...] = ()
    tracks: tuple[str, ...] = ()
    words: str = ""


class SelectionCache(Cache):
    """A selections cache, open for reading."""

    kind = "selections"

    def info(self, video_id: str) -> SelectionInfo:
        """Names and sizes of a video."""
        stored = self.folder(video_id).attributes
        size = (stored["size"][0], stored["size"][1])
        made_of = stored.get("made_of", {"tracks": (), "words": ""})
        return SelectionInfo(
            video_id,
            tuple(stored["frame_names"]),
            size,
            tuple(stored["expression_ids"]),
            expressions_from_json(video_id, stored.get("expressions", [])),
            tuple(made_of["tracks"]),
            made_of["words"],
        )

    def scores(self, video_id: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scores and candidates of all expressions, each (E, N), or (E, Q) of predicted masks, which are not read."""
        folder = self.folder(video_id)
        return folder.array("scores"), folder.array("candidates")

    def scores_tracks(self, video_id: str) -> bool:
        """Whether a score is that of one track, not of a query with masks of its own or with parts of several tracks."""
        folder = self.folder(video_id)
        return not folder.attributes["drawn"] and not _has_parts(folder)

    def selections(self, video_id: str) -> tuple[Selection, ...]:
        """The selection of each expression, in file order. Raises InputError for damaged files, ValueError for parts of no track."""
        folder, info = self.folder(video_id), self.info(video_id)
        scores, candidates = folder.array("scores"), folder.array("candidates")
        masks: list[RleMasks | None] = [None] * len(scores)
        if folder.attributes["drawn"]:
            e, q = scores.shape
            all_masks = RleMasks.from_runs(decode_masks(folder.array("mask_rle"), (e * q, len(info.frame_names)), info.size))
            masks = [all_masks.select(range(i * q, (i + 1) * q)) for i in range(e)]
        parts = folder.array(PARTS) if _has_parts(folder) else [None] * len(scores)
        return tuple(Selection(*row) for row in zip(info.expression_ids, scores, candidates, masks, parts, strict=True))


def _has_parts(folder: VideoFolder) -> bool:
    return f"{PARTS}/zarr.json" in folder.digests
