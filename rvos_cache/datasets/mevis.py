"""MeViS: `<root>/<split>/JPEGImages/<video>/<frame>.jpg`, `meta_expressions.json`, `mask_dict.json`.

meta_expressions.json: {"videos": {video: {"expressions": {id: {"exp", "anno_id": [...]}}, "frames": [stems]}}};
mask_dict.json: {anno_id: [COCO RLE or null per frame of its video, frames sorted by name]}. The split `valid` has neither
anno_id nor masks. MeViSv2 calls its list `meta_expressions_v2.json`; a sentence that nothing matches has no anno_id in its
list, and one that is spoken too has "audio", which is not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.meta_expressions import ListedVideos, check_frames, check_once, read_json, twice
from rvos_cache.errors import InputError
from rvos_cache.frames import folder_video, frame_files
from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.types import Expression, GroundTruth, Video, check_id

SPLITS = ("train", "valid_u", "valid")
OPEN = ("train", "valid_u")
EXPRESSIONS, EXPRESSIONS_V2, MASKS, FRAMES = "meta_expressions.json", "meta_expressions_v2.json", "mask_dict.json", "JPEGImages"
AUDIO = "audio"
MASK_FAULTS = 20
"""Faults of masks that `check` names per video; the others are counted."""


class Mevis(ListedVideos):
    """One split of MeViS or MeViSv2, or of anything in their layout."""

    name = "mevis"
    one_object = False

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError; warns where sentences have audio, once for a file, which is not read."""
        self.root, self.split = Path(root), split
        self.folder = self.root / check_id(split, f"{self.root}, split")
        first, second = self.folder / EXPRESSIONS, self.folder / EXPRESSIONS_V2
        if first.exists() and second.exists():
            raise InputError(f"{first} and {second}: two lists of one split; keep the one to read")
        self._read_list(second if second.exists() else first)
        self.repeated_masks: list[str] = []
        spoken = sum(map(_spoken, self.videos.values()))
        if spoken:
            _say_once(f'{self.file.absolute()}: "{AUDIO}" of {spoken} expressions is ignored, their text is read')

    @staticmethod
    def splits(root: Path) -> list[str]:
        """The splits found under `root`: MeViS's own in its order, then any other folder with expressions."""
        found = {p.parent.name for name in (EXPRESSIONS, EXPRESSIONS_V2) for p in Path(root).glob(f"*/{name}")}
        return [s for s in SPLITS if s in found] + sorted(found - set(SPLITS))

    @property
    def has_ground_truth(self) -> bool:
        """Whether the split shows its answers: MeViS's open splits do (missing masks are a fault there), others by their file."""
        return self.split in OPEN or (self.folder / MASKS).exists()

    def video(self, video_id: str) -> Video:
        """Raises InputError when it is not listed, its id cannot name a folder, or its frames are missing."""
        return folder_video(self.folder / FRAMES / video_id, video_id, self._frame_names(video_id))

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """In file order. Raises InputError for an empty text, a bad id, or an id that is not annotated."""
        return tuple(self._expression(video_id, key, self.has_ground_truth) for key in self.expression_ids(video_id))

    def _expression(self, video_id: str, key: str, answers: bool) -> Expression:
        return self._sentence(video_id, key, self._targets if answers else None)

    def _targets(self, entry: dict[str, Any], where: str) -> tuple[str, ...]:
        """The objects that an expression names, each once. Raises InputError: no list, or one that has no masks."""
        ids = entry.get("anno_id")
        if not isinstance(ids, list):
            raise InputError(f'{where}: "anno_id" must be a list of ids; copy the file again')
        targets = tuple(dict.fromkeys(str(i) for i in ids))
        lost = [i for i in targets if i not in self.masks]
        if lost:
            raise InputError(f"{where}: object {lost[0]} is not in {self.folder / MASKS}; copy both again")
        return targets

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """The objects that the video's expressions name, by anno_id. None when the split has no masks. Raises InputError."""
        if not self.has_ground_truth:
            return None
        video = self.video(video_id)
        named = [target for e in self.expressions(video_id) for target in e.targets or ()]
        ids = tuple(dict.fromkeys(named))
        check_once(self.folder / MASKS, self.repeated_masks)
        rows = []
        for object_id in ids:
            listed, where = self._mask_list(object_id, video_id, len(video))
            rows.append([from_coco(rle, video.size, f"{where}, frame {n}") for rle, n in zip(listed, video.frame_names)])
        return GroundTruth(ids, RleMasks.from_bytes(rows, len(video), video.size), np.ones(len(video), bool))

    def _mask_list(self, object_id: str, video_id: str, frames: int) -> tuple[list[Any], str]:
        """The masks of an object, one per frame, and how messages call it. Raises InputError for another number of them."""
        where = f"{self.folder / MASKS}, object {object_id} of video {video_id}"
        listed = self.masks[object_id]
        if not isinstance(listed, list) or len(listed) != frames:
            found = len(listed) if isinstance(listed, list) else type(listed).__name__
            raise InputError(f"{where}: {found} masks for {frames} frames; copy the file again")
        return listed, where

    def kind(self, video_id: str, expression_id: str) -> str | None:
        """What the file says the sentence needs ("motion", "static", ...), where it says so."""
        kind = self._listed(video_id)[expression_id].get("kind")
        return kind if isinstance(kind, str) else None

    def check(self) -> Iterator[str]:
        """Every fault, one line each."""
        answers = self.has_ground_truth
        if answers:
            try:
                _ = self.masks
            except InputError as error:
                yield str(error)
                answers = False
        for file, key in [(self.file, key) for key in self.repeated] + [
            (self.folder / MASKS, key) for key in self.repeated_masks
        ]:
            yield twice(file, key)
        for video_id in self.videos:
            yield from self._check_video(video_id, answers)

    def _check_video(self, video_id: str, answers: bool) -> Iterator[str]:
        try:
            self._entry(video_id)
        except InputError as error:
            yield str(error)
            return
        named = yield from self._check_expressions(video_id, answers)
        try:
            names = self._frame_names(video_id)
            files = frame_files(self.folder / FRAMES / video_id)
        except InputError as error:
            yield str(error)
            return
        size = yield from check_frames(self.folder / FRAMES / video_id, names, files)
        if size is not None:
            faults = [fault for name in named for fault in self._mask_faults(name, video_id, names, size)]
            yield from faults[:MASK_FAULTS]
            if len(faults) > MASK_FAULTS:
                yield f"{self.folder / MASKS}, video {video_id}: {len(faults) - MASK_FAULTS} more faults of masks"

    def _check_expressions(self, video_id: str, answers: bool) -> Generator[str, None, list[str]]:
        """Faults of a video's expressions; returns the objects that they name, faulty expressions too."""
        named: dict[str, None] = {}
        try:
            keys = self.expression_ids(video_id)
        except InputError as error:
            yield str(error)
            keys = ()
        for key in keys:
            try:
                self._expression(video_id, key, answers)
            except InputError as error:
                yield str(error)
            entry = self._listed(video_id)[key]
            ids = entry.get("anno_id") if answers and isinstance(entry, dict) else None
            named |= dict.fromkeys(str(i) for i in ids if str(i) in self.masks) if isinstance(ids, list) else {}
        return list(named)

    def _mask_faults(self, object_id: str, video_id: str, names: list[str], size: tuple[int, int]) -> Iterator[str]:
        try:
            listed, where = self._mask_list(object_id, video_id, len(names))
        except InputError as error:
            yield str(error)
            return
        for rle, name in zip(listed, names):
            try:
                from_coco(rle, size, f"{where}, frame {name}")
            except InputError as error:
                yield str(error)

    @cached_property
    def masks(self) -> dict[str, Any]:
        """mask_dict.json. Raises InputError."""
        path = self.folder / MASKS
        content = read_json(path, self.repeated_masks)
        if not isinstance(content, dict):
            raise InputError(f"{path}: wanted an object of anno_id: masks; copy the file again")
        return content


@cache
def _say_once(notice: str) -> None:
    # A command opens a split for its tracks and again for its words.
    warnings.warn(notice, stacklevel=3)


def _spoken(entry: object) -> int:
    """How many expressions of a video's entry have audio."""
    listed = entry.get("expressions") if isinstance(entry, dict) else None
    return sum(isinstance(e, dict) and AUDIO in e for e in listed.values()) if isinstance(listed, dict) else 0
