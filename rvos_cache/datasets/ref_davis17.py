"""Ref-DAVIS17 as ReferFormer converts it, in the layout of `palette_split`: splits train (60 videos) and valid (30).

Each object has four sentences, of "annotators" 0 to 3: the first person's for the first frame and for the whole video, then
the second person's. Expression 4 * i + a is annotator a's sentence for the i-th object. Each annotator is scored separately,
and the scores are averaged. A list with one sentence per object has one annotator. Every frame is annotated; pixels of value
255 are not scored.

Source: Khoreva et al., "Video Object Segmentation with Language Referring Expressions", ACCV 2018; ReferFormer,
tools/data/convert_davis_to_ytvos.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.palette import palette_masks, read_palette
from rvos_cache.datasets.palette_split import PaletteSplit, object_number
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.types import Expression

ANNOTATORS = 4
VOID = 255


class RefDavis17(PaletteSplit):
    """One split of Ref-DAVIS17. annotators: sentences per object, 4, or 1 where no object of the split has two."""

    name = "ref-davis17"
    protocol = "davis"
    submission_layout = "anno_{annotator}/{video}/{frame}.png"
    submission_split = "valid"
    known_splits = ("train", "valid")
    every_frame = True
    all_named = True
    unscored = frozenset({VOID})

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        # Decided by the whole split: a video that lost three of four sentences is a fault, not a video of one annotator.
        several = any(len(objects) != len(set(objects)) for objects in map(self._objects, self.videos))
        self.annotators = ANNOTATORS if several else 1

    def annotator(self, video_id: str, expression_id: str) -> int:
        """Return the index of the annotator who wrote the expression.

        Raises InputError: if the expression is not listed, or the video's list is damaged.
        """
        keys = self._sorted_ids(video_id)
        if expression_id not in keys:
            raise InputError(f"{self.file}, video {video_id}: no expression {expression_id!r}; rvos-cache check lists faults")
        self.check_together(video_id)
        return keys.index(expression_id) % self.annotators

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the expressions in file order. Raises InputError: as in every split, and if an annotator's is missing."""
        expressions = super().expressions(video_id)
        self.check_together(video_id)
        return expressions

    def void(self, video_id: str) -> RleMasks:
        """Return the pixels that are not scored, RleMasks (1, T). Raises InputError: if an annotation is damaged."""
        video = self.video(video_id)
        return palette_masks(self._annotation_paths(video), [VOID], video.size)

    def scored_objects(self, video_id: str) -> RleMasks:
        """Return the objects that the benchmark scores, RleMasks (A, T): numbers 1 to A, the largest one in the first frame.

        Raises InputError: if an annotation is damaged, an expression names a number above A, or a number up to A is in no frame:
        the benchmark would leave out the first, and score the second as an object that is never visible.
        """
        video = self.video(video_id)
        paths = self._annotation_paths(video)
        # Every frame has a PNG, see `every_frame`.
        first = read_palette(paths[0], video.size)  # type: ignore[arg-type]
        count = int(first[first != VOID].max(initial=0))
        location = f"{paths[0]}: the benchmark scores objects up to the largest number in the first frame, {count}"
        for number, expression_id in self._targets(video_id).items():
            if number > count:
                raise InputError(f"{location}, not object {number} of expression {expression_id}; number the objects anew")
        masks = palette_masks(paths, range(1, count + 1), video.size)
        absent = np.flatnonzero(masks.area().sum(1) == 0)
        if len(absent):
            raise InputError(f"{location}, but object {absent[0] + 1} is in no frame; number the objects without a gap")
        return masks

    def _check_video(self, video_id: str, meta: dict[str, Any] | None) -> Iterator[str]:
        fault = None
        for fault in super()._check_video(video_id, meta):
            yield fault
        if fault is None:
            try:
                self.scored_objects(video_id)
            except InputError as error:
                yield str(error)

    def _sorted_ids(self, video_id: str) -> list[str]:
        """Return the expression ids, by number where all are numbers: a program may have written them sorted as text."""
        keys = list(self._expression_entries(video_id))
        return sorted(keys, key=lambda key: (len(key), key)) if all(map(str.isdecimal, keys)) else keys

    def _objects(self, video_id: str) -> list[int]:
        """Return the object number of each expression, by id; an empty list if one of them cannot be read."""
        try:
            entries = self._expression_entries(video_id)
            return [object_number(entries[key]["obj_id"], "") for key in self._sorted_ids(video_id)]
        except (InputError, KeyError, TypeError):
            return []

    def check_together(self, video_id: str) -> None:
        """Raise InputError unless the expressions are blocks of one object each, with one sentence of each annotator."""
        objects, n = self._objects(video_id), self.annotators
        blocks = [objects[i : i + n] for i in range(0, len(objects), n)]
        location = f"{self.file}, video {video_id}"
        if len(objects) % n:
            raise InputError(
                f"{location}: expected {n} expressions per object, got {len(objects)} in all; convert the text again"
            )
        for i, block in enumerate(blocks):
            if len(set(block)) > 1 or block[0] in objects[: i * n]:
                expected = f"expected {n} expressions in a row of one object, {n * i} to {n * i + n - 1}"
                raise InputError(f"{location}: {expected} are of {', '.join(map(str, block))}; convert the text again")
