"""MeViS: `<root>/<split>/JPEGImages/<video>/<frame>.jpg`, `meta_expressions.json`, `mask_dict.json`.

meta_expressions.json: {"videos": {video: {"expressions": {id: {"exp", "anno_id": [...]}}, "frames": [stems]}}};
mask_dict.json: {anno_id: [COCO RLE or null per frame of its video, frames sorted by name]}. The split `valid` has neither
anno_id nor masks. MeViSv2 names its list `meta_expressions_v2.json`; there an expression without a target has an empty
anno_id, and one with a recording has "audio", which is not read.

Source: Ding et al., "MeViS: A Large-scale Benchmark for Video Segmentation with Motion Expressions", ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.base import limit_faults
from rvos_cache.datasets.json_files import check_no_duplicates, duplicate_key_message, read_json
from rvos_cache.datasets.listed import check_frames
from rvos_cache.datasets.meta_expressions import MetaExpressions
from rvos_cache.errors import InputError, warn_once
from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.media.frames import folder_video, frame_files
from rvos_cache.system.progress import tracked
from rvos_cache.types import Expression, GroundTruth, Video, check_id

SPLITS = ("train", "valid_u", "valid")
ANNOTATED = ("train", "valid_u")
"""The splits that are published with masks."""
EXPRESSIONS, EXPRESSIONS_V2, MASKS, FRAMES = "meta_expressions.json", "meta_expressions_v2.json", "mask_dict.json", "JPEGImages"
AUDIO = "audio"


class Mevis(MetaExpressions):
    """One split of MeViS or MeViSv2, or of any dataset in their layout."""

    name = "mevis"
    submission_layout = "{video}/{expression}/{frame}.png"
    submission_split = "valid_u"
    upright = False

    def __init__(self, root: Path, split: str) -> None:
        """Read the list; warn, once per file, if expressions have audio, which is not read.

        Raises InputError: if the split has no list, two lists, or a damaged one.
        """
        super().__init__(root, split)
        self.folder = self.root / split
        first, second = self.folder / EXPRESSIONS, self.folder / EXPRESSIONS_V2
        if first.exists() and second.exists():
            raise InputError(f"{first} and {second}: two lists of one split; keep the one to read")
        self._read_list(second if second.exists() else first)
        self.duplicate_mask_keys: list[str] = []
        with_audio = sum(map(_count_audio, self.videos.values()))
        if with_audio:
            warn_once(f'{self.file.absolute()}: "{AUDIO}" of {with_audio} expressions is ignored, their text is read')

    def _check_split(self) -> None:
        check_id(self.split, f"{self.root}, split")

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the splits under `root` with videos of their own: MeViS's in its order, then every other folder with expressions.

        The frames of valid_p of moving shapes, for example, are a link to those of valid_u.
        """
        lists = [path for name in (EXPRESSIONS, EXPRESSIONS_V2) for path in Path(root).glob(f"*/{name}")]
        names = {path.parent.name for path in lists if not _borrows_frames(path.parent)}
        return [s for s in SPLITS if s in names] + sorted(names - set(SPLITS))

    @property
    def has_ground_truth(self) -> bool:
        """Whether the split has ground truth. For train and valid_u a missing mask file is a fault; others need the file."""
        return self.split in ANNOTATED or (self.folder / MASKS).exists()

    def video(self, video_id: str) -> Video:
        """Return one video. Raises InputError: if it is not listed or its frames are missing."""
        return folder_video(self.folder / FRAMES / video_id, video_id, self._frame_names(video_id), self.upright)

    def _frame_names(self, video_id: str) -> list[str]:
        """Raises InputError: also if the names do not tell which mask belongs to which frame; masks are listed without names."""
        names, listed = super()._frame_names(video_id), self._entry(video_id)["frames"]
        if names not in (listed, sorted(listed)) and self.has_ground_truth:
            by_text = next(text for name, text in zip(names, sorted(listed)) if name != text)
            problem = f"frames are not listed in natural order, and sorted as text {by_text} comes earlier"
            raise InputError(
                f"{self.file}, video {video_id}: {problem}, so which mask of {MASKS} is whose is unknown; list them in natural order"
            )
        return names

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the expressions in file order. Raises InputError: if one has no text, a bad id, or a target without masks."""
        return tuple(self._expression(video_id, key, self.has_ground_truth) for key in self.expression_ids(video_id))

    def _expression(self, video_id: str, expression_id: str, with_targets: bool) -> Expression:
        return self._read_expression(video_id, expression_id, self._targets if with_targets else None)

    def _targets(self, entry: dict[str, Any], location: str) -> tuple[str, ...]:
        """Return the targets of an expression's entry, each once. Raises InputError: if one of them has no masks."""
        ids = entry.get("anno_id")
        if not isinstance(ids, list):
            raise InputError(f'{location}: "anno_id" must be a list of ids; copy the file again')
        targets = tuple(dict.fromkeys(str(i) for i in ids))
        missing = [i for i in targets if i not in self.masks]
        if missing:
            raise InputError(f"{location}: object {missing[0]} is not in {self.folder / MASKS}; copy both again")
        return targets

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """Return the targets of the video's expressions, by anno_id; None if the split has no masks.

        Raises InputError: if a mask is damaged or a key of the mask file occurs twice.
        """
        if not self.has_ground_truth:
            return None
        video = self.video(video_id)
        ids = tuple(dict.fromkeys(target for e in self.expressions(video_id) for target in e.targets or ()))
        check_no_duplicates(self.folder / MASKS, self.duplicate_mask_keys)
        rows = []
        for object_id in ids:
            masks, location = self._masks_of_object(object_id, video_id, len(video))
            rows.append([from_coco(rle, video.size, f"{location}, frame {n}") for rle, n in zip(masks, video.frame_names)])
        return GroundTruth(ids, RleMasks.from_bytes(rows, len(video), video.size), np.ones(len(video), bool))

    def _masks_of_object(self, object_id: str, video_id: str, frames: int) -> tuple[list[Any], str]:
        """Return the masks of an object, one per frame, and the location of the list. Raises InputError: if some are missing."""
        location = f"{self.folder / MASKS}, object {object_id} of video {video_id}"
        masks = self.masks[object_id]
        if not isinstance(masks, list) or len(masks) != frames:
            number = len(masks) if isinstance(masks, list) else type(masks).__name__
            raise InputError(f"{location}: {number} masks for {frames} frames; copy the file again")
        return masks, location

    def kind(self, video_id: str, expression_id: str) -> str | None:
        """Return the expression's "kind" ("motion", "static", ...) where the file has it, as that of moving shapes has."""
        kind = self._expression_entries(video_id)[expression_id].get("kind")
        return kind if isinstance(kind, str) else None

    def check(self) -> Iterator[str]:
        """Yield every fault, one line each."""
        masks_readable = self.has_ground_truth
        if masks_readable:
            try:
                _ = self.masks
            except InputError as error:
                yield str(error)
                masks_readable = False
        for key in self.duplicate_keys:
            yield duplicate_key_message(self.file, key)
        for key in self.duplicate_mask_keys:
            yield duplicate_key_message(self.folder / MASKS, key)
        for video_id in tracked(self.videos, f"check {self.split}"):
            yield from self._check_video(video_id, masks_readable)

    def _check_video(self, video_id: str, masks_readable: bool) -> Iterator[str]:
        try:
            self._entry(video_id)
        except InputError as error:
            yield str(error)
            return
        targets = yield from self._check_expressions(video_id, masks_readable)
        try:
            names = self._frame_names(video_id)
            files = frame_files(self.folder / FRAMES / video_id)
        except InputError as error:
            yield str(error)
            return
        size = yield from check_frames(self.folder / FRAMES / video_id, names, files, self.upright)
        if size is not None:
            faults = (fault for target in targets for fault in self._mask_faults(target, video_id, names, size))
            yield from limit_faults(faults, f"{self.folder / MASKS}, video {video_id}", "masks")

    def _check_expressions(self, video_id: str, masks_readable: bool) -> Generator[str, None, list[str]]:
        """Yield the faults of a video's expressions; return their targets, also those of faulty expressions."""
        targets: dict[str, None] = {}
        try:
            keys = self.expression_ids(video_id)
        except InputError as error:
            yield str(error)
            keys = ()
        for key in keys:
            try:
                self._expression(video_id, key, masks_readable)
            except InputError as error:
                yield str(error)
            entry = self._expression_entries(video_id)[key]
            ids = entry.get("anno_id") if masks_readable and isinstance(entry, dict) else None
            targets |= dict.fromkeys(str(i) for i in ids if str(i) in self.masks) if isinstance(ids, list) else {}
        return list(targets)

    def _mask_faults(self, object_id: str, video_id: str, names: list[str], size: tuple[int, int]) -> Iterator[str]:
        try:
            masks, location = self._masks_of_object(object_id, video_id, len(names))
        except InputError as error:
            yield str(error)
            return
        for rle, name in zip(masks, names):
            try:
                from_coco(rle, size, f"{location}, frame {name}")
            except InputError as error:
                yield str(error)

    @cached_property
    def masks(self) -> dict[str, Any]:
        """The content of mask_dict.json. Raises InputError: if it cannot be read."""
        path = self.folder / MASKS
        content = read_json(path, self.duplicate_mask_keys)
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected an object of anno_id: masks; copy the file again")
        return content


def _borrows_frames(split: Path) -> bool:
    """Return whether the frames of the folder `split` are a link to those of another split beside it."""
    frames = split / FRAMES
    return frames.is_symlink() and frames.resolve().parent.parent == split.parent.resolve()


def _count_audio(entry: object) -> int:
    """Return the number of expressions with audio in a video's entry."""
    entries = entry.get("expressions") if isinstance(entry, dict) else None
    return sum(isinstance(e, dict) and AUDIO in e for e in entries.values()) if isinstance(entries, dict) else 0
