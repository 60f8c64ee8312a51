"""Ref-DAVIS17 as ReferFormer converts it, in the layout of `palette_split`: splits train (60 videos) and valid (30).

Each object has four sentences, of "annotators" 0 to 3: the first person's for the first frame and for the whole video, then
the second's. Expression 4 * i + a is annotator a's of the i-th object; each annotator is scored by itself, then their mean is
taken. A list with one sentence per object has one annotator. Every frame is annotated; pixels of value 255 are not scored.
"""

from __future__ import annotations

from pathlib import Path

from rvos_cache.datasets.palette import palette_masks
from rvos_cache.datasets.palette_split import PaletteSplit, found_splits, object_number
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.types import Expression

SPLITS = ("train", "valid")
ANNOTATORS = 4
VOID = 255


class RefDavis17(PaletteSplit):
    """One split of Ref-DAVIS17. annotators: sentences per object, 4, or 1 where no object of the split has two."""

    name = "ref-davis17"
    one_object = True
    every_frame = True
    all_named = True
    unscored = frozenset({VOID})

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(root, split)
        # Of the whole split: a video that lost three of four sentences is a fault and not a video of one annotator.
        several = any(len(objects) != len(set(objects)) for objects in map(self._objects, self.videos))
        self.annotators = ANNOTATORS if several else 1

    @staticmethod
    def splits(root: Path) -> list[str]:
        """Those of train and valid that are found under `root`, then any other folder with expressions."""
        return found_splits(root, SPLITS)

    def annotator(self, video_id: str, expression_id: str) -> int:
        """Which annotator wrote the expression, from 0. Raises InputError: it is not listed, or the video's list is damaged."""
        keys = self._in_order(video_id)
        if expression_id not in keys:
            raise InputError(f"{self.file}, video {video_id}: no expression {expression_id!r}; rvos-cache check lists faults")
        self.check_together(video_id)
        return keys.index(expression_id) % self.annotators

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """In file order. Raises InputError as every split does, and where an object lacks an annotator."""
        found = super().expressions(video_id)
        self.check_together(video_id)
        return found

    def void(self, video_id: str) -> RleMasks:
        """The pixels that are not scored, RleMasks (1, T). Raises InputError."""
        video = self.video(video_id)
        return palette_masks(self._annotation_paths(video), [VOID], video.size)

    def _in_order(self, video_id: str) -> list[str]:
        """The expression ids by number, where they are numbers: a file that was written again may have sorted them as text."""
        keys = list(self._listed(video_id))
        return sorted(keys, key=lambda key: (len(key), key)) if all(map(str.isdecimal, keys)) else keys

    def _objects(self, video_id: str) -> list[int]:
        """The object number of each expression in the order of the annotators; none where one of them cannot be read."""
        try:
            listed = self._listed(video_id)
            return [object_number(listed[key]["obj_id"], "") for key in self._in_order(video_id)]
        except (InputError, KeyError, TypeError):
            return []

    def check_together(self, video_id: str) -> None:
        """Raises InputError unless the expressions are blocks of one object each, a sentence of each annotator in it."""
        objects, n = self._objects(video_id), self.annotators
        blocks = [objects[i : i + n] for i in range(0, len(objects), n)]
        where = f"{self.file}, video {video_id}"
        if len(objects) % n:
            raise InputError(f"{where}: wanted {n} expressions per object, came {len(objects)} in all; convert the text again")
        for i, block in enumerate(blocks):
            if len(set(block)) > 1 or block[0] in objects[: i * n]:
                wanted = f"wanted {n} expressions in a row of one object, {n * i} to {n * i + n - 1}"
                raise InputError(f"{where}: {wanted} are of {', '.join(map(str, block))}; convert the text again")
