"""The layout of Ref-YouTube-VOS, which the converted Ref-DAVIS17 has too: expressions, frames and palette PNGs.

`meta_expressions/<split>/meta_expressions.json`, `<split>/JPEGImages/<video>/<frame>.jpg`,
`<split>/Annotations/<video>/<frame>.png`, `<split>/meta.json` (optional: {"videos": {video: {"objects": {number: {"frames":
[stems of the object]}}}}}). In a split with ground truth an expression has "obj_id", the pixel value of its object.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.base import limit_faults
from rvos_cache.datasets.json_files import duplicate_key_message
from rvos_cache.datasets.listed import check_frames
from rvos_cache.datasets.meta_expressions import MetaExpressions, read_videos
from rvos_cache.datasets.palette import LabelMaps, numbers_in, palette_files, palette_masks
from rvos_cache.errors import InputError, warn_once
from rvos_cache.media.frames import folder_video, frame_files
from rvos_cache.system.progress import tracked
from rvos_cache.types import Expression, GroundTruth, Video, check_id

LISTS, EXPRESSIONS = "meta_expressions", "meta_expressions.json"
FRAMES, ANNOTATIONS, OBJECTS = "JPEGImages", "Annotations", "meta.json"


class PaletteSplit(MetaExpressions):
    """One split in this layout. A subclass adds its name and its splits."""

    one_object = True
    upright = False
    known_splits: tuple[str, ...] = ()
    """The published splits, in the order in which `splits` returns them."""
    every_frame = False
    """Whether every listed frame must have a PNG. If not, frames without one are not annotated, but some must have one."""
    all_named = False
    """Whether the expressions name all objects where no meta.json lists them. If not, PNGs may have other objects."""
    unscored: frozenset[int] = frozenset()
    """Pixel values that are no object."""

    def __init__(self, root: Path, split: str, folder: str | None = None) -> None:
        """folder: the split's folder, where the split is a part of another (default: `split`).

        Raises InputError: if the split has no list of videos or a damaged one.
        """
        super().__init__(root, split)
        folder = folder or split
        self.folder, self.frames = self.root / folder, self.root / folder / FRAMES
        self._read_list(self.root / LISTS / folder / EXPRESSIONS)

    def _check_split(self) -> None:
        check_id(self.split, f"{self.root}, split")

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the splits under `root`: the published ones in their order, then every other folder with expressions."""
        names = {p.parent.name for p in (Path(root) / LISTS).glob(f"*/{EXPRESSIONS}")}
        return [s for s in cls.known_splits if s in names] + sorted(names - set(cls.known_splits))

    def video(self, video_id: str) -> Video:
        """Return one video. Raises InputError: if it is not listed or its frames are missing."""
        names = self._frame_names(video_id)
        return folder_video(self._frame_folder(video_id), video_id, names, self.upright)

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the expressions in file order.

        Raises InputError: if one has no text, a bad id, or an "obj_id" that is no object number.
        """
        return tuple(self._expression(video_id, key) for key in self._expression_entries(video_id))

    def object_id(self, video_id: str, number: int) -> str:
        """Return the id, unique in the dataset, of the object with this pixel value."""
        return f"{video_id}-{number}"

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """Return the targets of the video's expressions, by number; None if the split has no ground truth.

        Raises InputError: if a PNG is damaged, missing or of another size, or a target is in no PNG.
        """
        if not self.has_ground_truth:
            return None
        video, targets = self.video(video_id), self._targets(video_id)
        paths = self._annotation_paths(video)
        masks = palette_masks(paths, list(targets), video.size)
        absent = np.flatnonzero(masks.area().sum(1) == 0)
        if len(absent):
            number = list(targets)[absent[0]]
            raise InputError(self._target_without_mask(video_id, number, targets[number]))
        ids = tuple(self.object_id(video_id, number) for number in targets)
        return GroundTruth(ids, masks, np.array([path is not None for path in paths], bool))

    def check(self) -> Iterator[str]:
        """Yield every fault, one line each."""
        for key in self.duplicate_keys:
            yield duplicate_key_message(self.file, key)
        meta, path, duplicate_keys = None, self.folder / OBJECTS, list[str]()
        if self.has_ground_truth and path.exists():
            try:
                meta = read_videos(path, duplicate_keys)
            except InputError as error:
                yield str(error)
        for key in duplicate_keys:
            yield duplicate_key_message(path, key)
        messages: set[str] = set()
        for video_id in tracked(self.videos, f"check {self.split}"):
            for fault in self._check_video(video_id, meta):
                # A link that became a file is a fault of every video.
                if fault not in messages:
                    messages.add(fault)
                    yield fault

    def check_together(self, video_id: str) -> None:
        """Check the expressions of a video as a whole, where a subclass requires something of them. Raises InputError."""

    def _frame_folder(self, video_id: str) -> Path:
        # An archive that was unpacked on a system without links has a file with the link's target instead of the folder.
        if self.frames.is_file():
            raise InputError(f"{self.frames}: expected a folder of videos, got a file; if it was a link, make the link again")
        return self.frames / video_id

    def _expression(self, video_id: str, expression_id: str) -> Expression:
        def targets(entry: dict[str, Any], location: str) -> tuple[str, ...]:
            return (self.object_id(video_id, object_number(entry.get("obj_id"), location)),)

        return self._read_expression(video_id, expression_id, targets if self.has_ground_truth else None)

    def _targets(self, video_id: str) -> dict[int, str]:
        """Return object number, ascending -> the id of the first expression that names it. Raises InputError."""
        location, targets = f"{self.file}, video {video_id}, expression", dict[int, str]()
        for key, entry in self._expression_entries(video_id).items():
            value = entry.get("obj_id") if isinstance(entry, dict) else None
            targets.setdefault(object_number(value, f"{location} {key}"), key)
        return dict(sorted(targets.items()))

    def _annotations(self, video_id: str) -> Path:
        return self.folder / ANNOTATIONS / video_id

    def _annotation_paths(self, video: Video) -> list[Path | None]:
        """Return the PNG of each of the T frames, None where it has none. Raises InputError: if one is required."""
        folder = self._annotations(video.video_id)
        files = palette_files(folder)
        paths = [files.get(name) for name in video.frame_names]
        if self.every_frame and None in paths:
            raise InputError(_no_annotation(folder / f"{video.frame_names[paths.index(None)]}.png"))
        if not any(paths):
            raise InputError(_no_annotation_of_video(folder))
        unlisted = sorted(files.keys() - set(video.frame_names))
        if unlisted:
            warn_once(_unlisted_annotations(folder, unlisted))
        return paths

    def _target_without_mask(self, video_id: str, number: int, expression_id: str) -> str:
        location = f"{self.file}, video {video_id}, expression {expression_id}"
        return f"{location}: no PNG in {self._annotations(video_id)} has its object {number}; copy both again"

    def _check_video(self, video_id: str, meta: dict[str, Any] | None) -> Iterator[str]:
        try:
            self._entry(video_id)
        except InputError as error:
            yield str(error)
            return
        targets = yield from self._check_expressions(video_id)
        try:
            self.check_together(video_id)
        except InputError as error:
            yield str(error)
        names, size = list[str](), None
        try:
            names = self._frame_names(video_id)
            folder = self._frame_folder(video_id)
            size = yield from check_frames(folder, names, frame_files(folder), self.upright)
        except InputError as error:
            yield str(error)
        if not self.has_ground_truth:
            return
        objects = yield from self._check_objects(video_id, targets, meta)
        faults = self._annotation_faults(video_id, names, size, targets, objects)
        yield from limit_faults(faults, str(self._annotations(video_id)), "annotations")

    def _check_expressions(self, video_id: str) -> Generator[str, None, dict[int, str]]:
        """Yield the faults of a video's expressions; return their targets (see `_targets`), also those of faulty ones."""
        targets: dict[int, str] = {}
        try:
            entries = self._expression_entries(video_id)
        except InputError as error:
            yield str(error)
            return targets
        for key, entry in entries.items():
            try:
                self._expression(video_id, key)
            except InputError as error:
                yield str(error)
            try:
                targets.setdefault(object_number(entry.get("obj_id") if isinstance(entry, dict) else None, ""), key)
            except InputError:
                continue
        return targets

    def _check_objects(
        self, video_id: str, targets: dict[int, str], meta: dict[str, Any] | None
    ) -> Generator[str, None, dict[int, list[str]] | None]:
        """Yield the faults of the video in meta.json; return object number -> its frames there, None where nothing lists them.

        meta: the videos of meta.json, None without that file.
        """
        if meta is None:
            try:
                return {number: [] for number in self._targets(video_id)} if self.all_named else None
            except InputError:
                return None
        location, entry = f"{self.folder / OBJECTS}, video {video_id}", meta.get(video_id)
        entries = entry.get("objects") if isinstance(entry, dict) else None
        if not isinstance(entries, dict):
            yield f'{location}: expected {{"objects": {{number: ...}}}}; copy the file again'
            return None
        objects: dict[int, list[str]] = {}
        for key, value in entries.items():
            frames = value.get("frames", []) if isinstance(value, dict) else None
            if not isinstance(frames, list):
                yield f'{location}, object {key}: expected {{"frames": list}}; copy the file again'
            try:
                objects[object_number(key, f"{location}, object")] = frames if isinstance(frames, list) else []
            except InputError as error:
                yield str(error)
        for number in sorted(targets.keys() - objects.keys()):
            of_expression = f"{self.file}, video {video_id}, expression {targets[number]}"
            yield f"{of_expression}: object {number} is not in {location}; copy both again"
        return objects

    def _annotation_faults(
        self,
        video_id: str,
        names: list[str],
        size: tuple[int, int] | None,
        targets: dict[int, str],
        objects: dict[int, list[str]] | None,
    ) -> Iterator[str]:
        """Yield the faults of a video's PNGs.

        names: its listed frames; size: (H, W) of the first that can be read; targets: see `_targets`; objects: see
        `_check_objects`.
        """
        folder, allowed = self._annotations(video_id), self.unscored.union(objects or (), targets)
        try:
            files = palette_files(folder)
        except InputError as error:
            yield str(error)
            return
        annotated = {frame for frames in (objects or {}).values() for frame in frames if isinstance(frame, str)}
        required = set(names) if self.every_frame else annotated.intersection(names)
        for name in sorted(required - files.keys()):
            yield _no_annotation(folder / f"{name}.png")
        unlisted = sorted(files.keys() - set(names))
        if names and unlisted:
            yield _unlisted_annotations(folder, unlisted)
        if names and len(unlisted) == len(files) and not required:
            yield _no_annotation_of_video(folder)
        visible, readable, label_maps = set[int](), True, LabelMaps(size)
        for name, path in files.items():
            try:
                numbers = numbers_in(label_maps.read(path))
            except InputError as error:
                yield str(error)
                readable = False
                continue
            # If the list of frames is faulty, every PNG counts.
            visible |= numbers if not names or name in names else set()
            if objects is not None and numbers - allowed:
                source = self.folder / OBJECTS if (self.folder / OBJECTS).exists() else self.file
                yield f"{path}: has object {min(numbers - allowed)}, which {source} does not list in this video; copy both again"
        readable = readable and (not names or not files.keys().isdisjoint(names))
        for number in sorted(targets.keys() - visible) if readable else ():
            yield self._target_without_mask(video_id, number, targets[number])


def object_number(value: object, location: str) -> int:
    """Return a pixel value from 1 to 254, given as a number or as text. Raises InputError: if it is neither."""
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 3 else 0
    if not 0 < number < 255:
        raise InputError(
            f'{location}: expected an object number ("obj_id") from 1 to 254, got {value!r:.40}; copy the file again'
        )
    return number


def _no_annotation(path: Path) -> str:
    return f"{path}: the annotation is missing; copy it from the dataset's archive"


def _unlisted_annotations(folder: Path, stems: Sequence[str]) -> str:
    return f"{folder}: {len(stems)} of its annotations are not listed, {stems[0]}.png first; list or remove them"


def _no_annotation_of_video(folder: Path) -> str:
    return f"{folder}: no listed frame of the video has an annotation here; copy the folder again"
