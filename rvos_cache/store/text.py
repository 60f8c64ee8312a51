"""Words of a split's expressions.

Layout of `videos/<video>/`, the words of all expressions one after the other: words f2 [sumL,D] · places i4 [sumL,3]
(span start, span end, index into the attribute `tag_names`) · ids i4 [sumL], only where the encoder gives ids.
Attributes: expressions (id, text, targets) in file order, and the number of words of each, `lengths`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from rvos_cache.store.reader import Cache
from rvos_cache.store.tracks import expressions_from_json, expressions_to_json
from rvos_cache.store.writer import CacheWriter
from rvos_cache.types import Expression, Words


@dataclass(frozen=True)
class TextRecord:
    """One video of a text cache: E expressions and their words."""

    video_id: str
    expressions: tuple[Expression, ...]
    words: tuple[Words, ...]

    def __post_init__(self) -> None:
        if len(self.expressions) != len(self.words):
            raise ValueError(f"{len(self.expressions)} expressions, {len(self.words)} encoded")
        if len({w.ids is None for w in self.words}) > 1:
            raise ValueError("some words have ids and some have none")


def write_text(writer: CacheWriter, record: TextRecord) -> bool:
    """Publish one video. False: another writer was first."""
    words, channels = record.words, writer.card.channels
    tag_names = sorted({tag for w in words for tag in w.tags})
    spans = np.concatenate([np.zeros((0, 2), np.int32), *(w.spans for w in words)])
    tags = np.array([tag_names.index(tag) for w in words for tag in w.tags], np.int32)
    arrays = {
        "words": np.concatenate([np.zeros((0, channels), np.float16), *(w.vectors.astype(np.float16) for w in words)]),
        "places": np.column_stack([spans, tags]),
    }
    ids = [w.ids for w in words if w.ids is not None]
    if ids:
        arrays["ids"] = np.concatenate(ids)
    attributes = {
        "video": record.video_id,
        "expressions": expressions_to_json(record.expressions),
        "tag_names": tag_names,
        "lengths": [len(w.vectors) for w in words],
    }
    return writer.publish(record.video_id, arrays, attributes)


class TextCache(Cache):
    """A text cache, open for reading."""

    kind = "text"

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """All expressions of the video in file order."""
        return expressions_from_json(video_id, self.folder(video_id).attributes["expressions"])

    def words(self, video_id: str) -> tuple[Words, ...]:
        """The words of each expression, in the same order; with ids where the encoder gave them."""
        folder = self.folder(video_id)
        vectors, table, tag_names = folder.array("words"), folder.array("places"), folder.attributes["tag_names"]
        spans, tags = np.ascontiguousarray(table[:, :2]), [tag_names[i] for i in table[:, 2].tolist()]
        stops = list(accumulate(folder.attributes["lengths"], initial=0))
        ids = folder.array("ids") if "ids/zarr.json" in folder.digests else None
        return tuple(
            Words(vectors[a:b], spans[a:b], tuple(tags[a:b]), None if ids is None else ids[a:b]) for a, b in pairwise(stops)
        )
