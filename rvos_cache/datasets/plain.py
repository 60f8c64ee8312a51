"""Videos of the user's own: `videos/<video>/<frame>.jpg` or `videos/<video>.mp4`, and `expressions.json`.

Other endings are those of `rvos_cache.media.images` and `rvos_cache.media.films`, also in capitals. Frames are upright, as viewers
show them, and so must the masks be.

expressions.json: {video: {id: text}}, or {video: [texts]}, whose ids are "0", "1", ... in order. Instead of a text there may be
{"text": text, "objects": [numbers]}, with [] for an expression without a target. With `masks/<video>/<frame>.png`, palette PNGs
whose pixel values are object numbers, the split then has ground truth. Frames without a PNG are not annotated; the frames of a
film are named from "00000" on. Splits are folders with these files, `<root>/<split>/`; if they are in the root itself the only
split is "all".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.base import limit_faults, make_expression
from rvos_cache.datasets.json_files import duplicate_key_message, read_json
from rvos_cache.datasets.listed import ListedDataset, check_frames
from rvos_cache.datasets.palette import LabelMaps, numbers_in, palette_files, palette_masks
from rvos_cache.errors import InputError, warn_once
from rvos_cache.media.films import SUFFIXES as FILMS
from rvos_cache.media.frames import file_video, folder_video, frame_files, warn_of_order
from rvos_cache.media.images import is_turned
from rvos_cache.system.progress import tracked
from rvos_cache.types import Expression, GroundTruth, Video, check_id

ALL = "all"
"""The split of a root without splits."""
EXPRESSIONS, VIDEOS, MASKS = "expressions.json", "videos", "masks"


class Plain(ListedDataset[Any]):
    """One split of the user's own videos."""

    name = "plain"

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError: if the split does not exist, is ambiguous, or its expressions cannot be read."""
        super().__init__(root, split)
        in_root, folder = self.root / EXPRESSIONS, self.root / split
        if split == ALL and in_root.exists() and (folder / EXPRESSIONS).exists():
            raise InputError(f"{in_root} and {folder / EXPRESSIONS}: both are split {ALL!r}; name the folder differently")
        self.folder = self.root if split == ALL and in_root.exists() else folder
        self.file, self.masks = self.folder / EXPRESSIONS, self.folder / MASKS
        self.duplicate_keys = []
        content = read_json(self.file, self.duplicate_keys)
        if not isinstance(content, dict) or not content:
            raise InputError(f"{self.file}: expected an object of video: expressions, with one video or more; write it again")
        self.videos = content
        entries = [entry for by_id in map(_by_id, self.videos.values()) for entry in by_id.values()]
        self.names_objects = any(isinstance(entry, dict) and "objects" in entry for entry in entries)
        self.shapes: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {}
        self.has_turned_frames = False

    def _check_split(self) -> None:
        if self.split not in self.splits(self.root):
            raise self._no_split(f"{self.root}: no split {self.split!r}, which would have {EXPRESSIONS}")

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the folders with expressions, sorted, and "all" if the root itself has expressions."""
        names = {p.parent.name for p in Path(root).glob(f"[!.]*/{EXPRESSIONS}")}
        return sorted(names | ({ALL} if (Path(root) / EXPRESSIONS).exists() else set()))

    @property
    def has_ground_truth(self) -> bool:
        """Whether there are masks and an expression that names its objects; every other expression must name its own then."""
        return self.names_objects and self.masks.is_dir()

    def video(self, video_id: str) -> Video:
        """Return one video.

        Raises InputError: if it is not listed, its id cannot name a folder, its frames are missing, or there are two of a folder
        and films.
        """
        folder, file = self._source(video_id)
        video = (
            folder_video(folder, video_id, upright=self.upright)
            if file is None
            else file_video(file, video_id, upright=self.upright)
        )
        self._check_names(folder, video.frame_names)
        self.shapes[video_id] = (video.frame_names, video.size)
        return video

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the expressions in file order.

        Raises InputError: if one has no text, a bad id, or no objects although the split has ground truth.
        """
        return tuple(self._expression(video_id, key) for key in self.expression_ids(video_id))

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """Return the ids in file order, also of expressions that cannot be read. Raises InputError: if there is none."""
        return tuple(self._expression_entries(video_id))

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """Return the targets of the expressions, with ids "<video>-<number>"; None if the split has no ground truth.

        annotated: the frames that have a PNG; all frames if no expression has a target. Raises InputError: if a PNG is damaged
        or of another size, no frame has one, or a target is in none.
        """
        if not self.has_ground_truth:
            return None
        targets = self._targets(video_id)
        names, size = self._shape(video_id)
        files = palette_files(self.masks / video_id) if targets else {}
        paths = [files.get(name) for name in names]
        if targets and not any(paths):
            raise InputError(self._no_masks(video_id, names))
        unknown = [name for name in files if name not in names]
        if unknown:
            raise InputError(self._masks_of_no_frame(video_id, unknown, names))
        self._warn_of_turned(video_id, files)
        masks = palette_masks(paths, list(targets), size)
        absent = np.flatnonzero(masks.area().sum(1) == 0)
        if len(absent):
            number = list(targets)[absent[0]]
            raise InputError(self._target_without_mask(video_id, number, targets[number]))
        annotated = np.array([path is not None or not targets for path in paths], bool)
        return GroundTruth(tuple(f"{video_id}-{number}" for number in targets), masks, annotated)

    def check(self) -> Iterator[str]:
        """Yield every fault, one line each; warn if there are masks but no "objects", or "objects" but no masks."""
        if self.names_objects != self.masks.is_dir():
            lacking = f'no folder {self.masks} for the "objects" of expressions'
            lacking = lacking if self.names_objects else 'no expression has "objects"'
            warnings.warn(f"{self.file}: {lacking}, so the split has no ground truth", stacklevel=2)
        for key in self.duplicate_keys:
            yield duplicate_key_message(self.file, key)
        for video_id in tracked(self.videos, f"check {self.split}"):
            yield from self._check_video(video_id)

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """Id -> the files among the videos that have it as their name before the ending."""
        files: dict[str, list[Path]] = {}
        folder = self.folder / VIDEOS
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file() and not path.name.startswith("."):
                files.setdefault(path.stem, []).append(path)
        return files

    def _source(self, video_id: str) -> tuple[Path, Path | None]:
        """Return the folder of the video's frames, and its film if it has one. Raises InputError: if it has none or several."""
        self._expression_entries(video_id)
        folder, files = self.folder / VIDEOS / video_id, self._files.get(video_id, [])
        films = [path for path in files if path.suffix.lower() in FILMS]
        names = [path.name for path in films]
        if folder.is_dir() and films:
            raise InputError(f"{folder} and {names[0]}: the video occurs twice; keep one")
        if len(films) > 1:
            raise InputError(f"{films[0]} and {' and '.join(names[1:])}: the video occurs twice; keep one")
        if not folder.is_dir() and not films:
            other = f" ({files[0].name} is no film: {', '.join(FILMS)})" if files else ""
            problem = f"not found, nor {video_id}.mp4 or another film{other}"
            raise InputError(f"{folder}: {problem}; {self.file} lists it: put the video there or unlist it")
        return folder, films[0] if films else None

    def _shape(self, video_id: str) -> tuple[tuple[str, ...], tuple[int, int]]:
        """Return frame names and size (H, W); a film is decoded only once for them."""
        if video_id not in self.shapes:
            self.video(video_id)
        return self.shapes[video_id]

    def _expression_entries(self, video_id: str) -> dict[str, Any]:
        """Return expression id -> its entry. Raises InputError: if the video is not listed or has no expressions."""
        entries = _by_id(self._entry(video_id))
        if not entries:
            expected = "expected {id: text} or a list of texts, one or more"
            raise InputError(f"{self.file}, video {video_id}: {expected}; write them")
        return entries

    def _expression(self, video_id: str, expression_id: str) -> Expression:
        location = f"{self.file}, video {video_id}, expression {expression_id}"
        entry = self._expression_entries(video_id)[expression_id]
        text = entry.get("text") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise InputError(f'{location}: expected a text or {{"text": text, "objects": [numbers]}}; write it again')
        targets = None
        if self.has_ground_truth:
            targets = tuple(f"{video_id}-{number}" for number in _objects(entry, location))
        return make_expression(self.file, video_id, expression_id, text, targets)

    def _targets(self, video_id: str) -> dict[int, str]:
        """Return object number, ascending -> the id of the first expression that names it. Raises InputError."""
        targets: dict[int, str] = {}
        for key, entry in self._expression_entries(video_id).items():
            for number in _objects(entry, f"{self.file}, video {video_id}, expression {key}"):
                targets.setdefault(number, key)
        return dict(sorted(targets.items()))

    def _warn_of_turned(self, video_id: str, files: Mapping[str, Path]) -> None:
        """Warn, once per split, if frames that have masks are turned. files: the masks; their sizes may not tell the orientation."""
        if self.has_turned_frames or not files:
            return
        try:
            folder, film = self._source(video_id)
            first = next(iter(frame_files(folder).values())) if film is None else []
            self.has_turned_frames = bool(first) and is_turned(first[0])
        except (InputError, StopIteration):
            # Reading the video raises it.
            return
        if self.has_turned_frames:
            problem = "have an EXIF tag, by which they are turned as in a viewer, so the masks must be drawn on the turned frames"
            warn_once(f"{first[0]}: this and other frames {problem}")

    def _no_masks(self, video_id: str, names: Sequence[str]) -> str:
        named = f", {names[0]} to {names[-1]}" if names else ""
        return f"{self.masks / video_id}: no frame of the video has a mask here; name the PNGs as the frames{named}"

    def _masks_of_no_frame(self, video_id: str, unknown: Sequence[str], names: Sequence[str]) -> str:
        problem = f"{len(unknown)} masks belong to no frame, {min(unknown)}.png first"
        return f"{self.masks / video_id}: {problem}; name them as the frames, {names[0]} to {names[-1]}"

    def _target_without_mask(self, video_id: str, number: int, expression_id: str) -> str:
        location = f"{self.file}, video {video_id}, expression {expression_id}"
        return f"{location}: no PNG in {self.masks / video_id} has its object {number}; paint it or take it off the list"

    def _check_video(self, video_id: str) -> Iterator[str]:
        try:
            entries = self._expression_entries(video_id)
        except InputError as error:
            yield str(error)
            return
        for key in entries:
            try:
                self._expression(video_id, key)
            except InputError as error:
                yield str(error)
        names, size = tuple[str, ...](), None
        try:
            folder, file = self._source(video_id)
            if file is None:
                files = frame_files(folder)
                names = tuple(files)
                size = yield from check_frames(folder, list(files), files, self.upright)
                self._check_names(folder, names)
                warn_of_order(folder, names)
            else:
                names, size = self._shape(video_id)
        except InputError as error:
            yield str(error)
        if self.has_ground_truth:
            yield from limit_faults(self._mask_faults(video_id, names, size), str(self.masks / video_id), "masks")

    @staticmethod
    def _check_names(folder: Path, names: tuple[str, ...]) -> None:
        """Raise InputError if there is no frame, or a frame's name cannot name its mask on every file system."""
        if not names:
            raise InputError(f"{folder}: no frames in this folder; put the frames there or unlist the video")
        for name in names:
            check_id(name, f"{folder}, frame")

    def _mask_faults(self, video_id: str, names: tuple[str, ...], size: tuple[int, int] | None) -> Iterator[str]:
        """Yield the faults of a video's PNGs. names: its frames, empty if unknown; size: (H, W), None if unknown."""
        folder, targets, all_known = self.masks / video_id, dict[int, str](), True
        for key, entry in self._expression_entries(video_id).items():
            try:
                targets |= {number: key for number in _objects(entry, "") if number not in targets}
            except InputError:
                # `_check_video` reports the expression. Its targets are unknown.
                all_known = False
        if not targets and not folder.exists():
            return
        try:
            files = palette_files(folder)
        except InputError as error:
            yield str(error)
            return
        unknown = sorted(files.keys() - set(names)) if names else []
        if unknown:
            yield self._masks_of_no_frame(video_id, unknown, names)
        if targets and len(unknown) == len(files):
            yield self._no_masks(video_id, names)
            return
        self._warn_of_turned(video_id, files)
        visible, readable, label_maps = set[int](), True, LabelMaps(size)
        for name, path in files.items():
            try:
                numbers = numbers_in(label_maps.read(path))
            except InputError as error:
                yield str(error)
                readable = False
                continue
            visible |= set() if name in unknown else numbers
            unnamed = numbers - targets.keys()
            if all_known and unnamed == {255}:
                yield f"{path}: has 255 as an object, as masks of 0 and 255 do; give each object its own number, from 1 on"
        for number in sorted(targets.keys() - visible) if readable else ():
            yield self._target_without_mask(video_id, number, targets[number])


def _by_id(entries: object) -> dict[str, Any]:
    """Return expression id -> its entry; empty if `entries` is neither an object nor a list."""
    if isinstance(entries, list):
        return {str(i): entry for i, entry in enumerate(entries)}
    return entries if isinstance(entries, dict) else {}


def _objects(entry: object, location: str) -> list[int]:
    """Return the object numbers of an expression's entry. Raises InputError: if it has none."""
    numbers = entry.get("objects") if isinstance(entry, dict) else None
    if not isinstance(numbers, list):
        expected = 'expected {"text": text, "objects": [numbers]} as in other expressions'
        raise InputError(f"{location}: {expected}; write [] for an expression without a target")
    for number in numbers:
        if type(number) is not int or not 0 < number < 255:
            expected = 'expected object numbers ("objects") from 1 to 254'
            raise InputError(f"{location}: {expected}, got {number!r:.40}; write them again")
    return list(dict.fromkeys(numbers))
