"""The layout of Ref-YouTube-VOS, which the converted Ref-DAVIS17 has too: expressions, frames and palette PNGs.

`meta_expressions/<split>/meta_expressions.json`, `<split>/JPEGImages/<video>/<frame>.jpg`,
`<split>/Annotations/<video>/<frame>.png`, `<split>/meta.json` (optional: {"videos": {video: {"objects": {number: {"frames":
[stems of the object]}}}}}). Where the split shows its answers an expression holds "obj_id", the pixel value of its object.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.meta_expressions import ListedVideos, check_frames, read_videos, twice
from rvos_cache.datasets.palette import numbers_in, palette_files, palette_masks, read_palette
from rvos_cache.errors import InputError
from rvos_cache.frames import folder_video, frame_files
from rvos_cache.types import Expression, GroundTruth, Video, check_id

LISTS, EXPRESSIONS = "meta_expressions", "meta_expressions.json"
FRAMES, ANNOTATIONS, OBJECTS = "JPEGImages", "Annotations", "meta.json"
FAULTS = 20
"""Faults of annotations that `check` names per video; the others are counted."""


def found_splits(root: Path, known: tuple[str, ...]) -> list[str]:
    """The splits whose expressions lie under `root`: `known` ones in that order, then others."""
    found = {p.parent.name for p in (Path(root) / LISTS).glob(f"*/{EXPRESSIONS}")}
    return [s for s in known if s in found] + sorted(found - set(known))


class PaletteSplit(ListedVideos):
    """One split in this layout. An adapter adds its name, its splits and what is its own.

    every_frame: every listed frame must have its PNG; else frames without one are not annotated, but some must be.
    all_named: where no meta.json tells the objects, the expressions name them all; else PNGs may show others.
    unscored: pixel values that are no object.
    """

    name: str
    every_frame = False
    all_named = False
    unscored: frozenset[int] = frozenset()

    def __init__(self, root: Path, split: str, listed: str | None = None) -> None:
        """listed: the folder of a split that is a part of another. Raises InputError."""
        self.root, self.split = Path(root), split
        folder = check_id(listed or split, f"{self.root}, split")
        self.folder, self.frames = self.root / folder, self.root / folder / FRAMES
        self._read_list(self.root / LISTS / folder / EXPRESSIONS)
        self.answers = True

    @staticmethod
    def splits(root: Path) -> list[str]:
        """The splits found under `root`."""
        return found_splits(root, ())

    @property
    def has_ground_truth(self) -> bool:
        """Whether the split shows its answers."""
        return self.answers

    def video(self, video_id: str) -> Video:
        """Raises InputError when it is not listed, its id cannot name a folder, or its frames are missing."""
        names = self._frame_names(video_id)
        return folder_video(self._frame_folder(video_id), video_id, names)

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """In file order. Raises InputError for an empty text, a bad id, or an "obj_id" that is no object number."""
        return tuple(self._expression(video_id, key) for key in self._listed(video_id))

    def object_id(self, video_id: str, number: int) -> str:
        """The id, unique in the dataset, of the object with this pixel value."""
        return f"{video_id}-{number}"

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """The objects that the video's expressions name, by number. None when the split hides its answers.

        Raises InputError: a PNG is damaged, of another size or absent, or no PNG shows an object that is named.
        """
        if not self.has_ground_truth:
            return None
        video, named = self.video(video_id), self._named(video_id)
        paths = self._annotation_paths(video)
        masks = palette_masks(paths, list(named), video.size)
        lost = np.flatnonzero(masks.area().sum(1) == 0)
        if len(lost):
            number = list(named)[lost[0]]
            raise InputError(self._never_shown(video_id, number, named[number]))
        ids = tuple(self.object_id(video_id, number) for number in named)
        return GroundTruth(ids, masks, np.array([path is not None for path in paths], bool))

    def check(self) -> Iterator[str]:
        """Every fault, one line each."""
        for key in self.repeated:
            yield twice(self.file, key)
        known, path, repeated = None, self.folder / OBJECTS, list[str]()
        if self.has_ground_truth and path.exists():
            try:
                known = read_videos(path, repeated)
            except InputError as error:
                yield str(error)
        for key in repeated:
            yield twice(path, key)
        told: set[str] = set()
        for video_id in self.videos:
            for fault in self._check_video(video_id, known):
                # A link that became a file is at fault in every video.
                if fault not in told:
                    told.add(fault)
                    yield fault

    def check_together(self, video_id: str) -> None:
        """What the adapter wants of a video's expressions as a whole. Raises InputError."""

    def _frame_folder(self, video_id: str) -> Path:
        # Archives of systems without links hold a file with the path instead.
        if self.frames.is_file():
            raise InputError(f"{self.frames}: wanted a folder of videos, came a file; if it was a link, make the link again")
        return self.frames / video_id

    def _expression(self, video_id: str, key: str) -> Expression:
        def targets(entry: dict[str, Any], where: str) -> tuple[str, ...]:
            return (self.object_id(video_id, object_number(entry.get("obj_id"), where)),)

        return self._sentence(video_id, key, targets if self.has_ground_truth else None)

    def _named(self, video_id: str) -> dict[int, str]:
        """Object number, rising, -> the first expression that names it. Raises InputError."""
        where, named = f"{self.file}, video {video_id}, expression", dict[int, str]()
        for key, entry in self._listed(video_id).items():
            raw = entry.get("obj_id") if isinstance(entry, dict) else None
            named.setdefault(object_number(raw, f"{where} {key}"), key)
        return dict(sorted(named.items()))

    def _annotations(self, video_id: str) -> Path:
        return self.folder / ANNOTATIONS / video_id

    def _annotation_paths(self, video: Video) -> list[Path | None]:
        """The PNG of each frame (T), None where it is not annotated. Raises InputError where one must be there."""
        folder = self._annotations(video.video_id)
        files = palette_files(folder)
        paths = [files.get(name) for name in video.frame_names]
        if self.every_frame and None in paths:
            raise InputError(_no_annotation(folder / f"{video.frame_names[paths.index(None)]}.png"))
        if not any(paths):
            raise InputError(f"{folder}: no listed frame of the video has an annotation here; copy the folder again")
        return paths

    def _never_shown(self, video_id: str, number: int, key: str) -> str:
        where = f"{self.file}, video {video_id}, expression {key}"
        return f"{where}: no PNG in {self._annotations(video_id)} shows its object {number}; copy both again"

    def _check_video(self, video_id: str, known: dict[str, Any] | None) -> Iterator[str]:
        try:
            self._entry(video_id)
        except InputError as error:
            yield str(error)
            return
        named = yield from self._check_expressions(video_id)
        try:
            self.check_together(video_id)
        except InputError as error:
            yield str(error)
        names, size = list[str](), None
        try:
            names = self._frame_names(video_id)
            folder = self._frame_folder(video_id)
            size = yield from check_frames(folder, names, frame_files(folder))
        except InputError as error:
            yield str(error)
        if not self.has_ground_truth:
            return
        shown = yield from self._check_objects(video_id, named, known)
        faults = list(self._annotation_faults(video_id, names, size, named, shown))
        yield from faults[:FAULTS]
        if len(faults) > FAULTS:
            yield f"{self._annotations(video_id)}: {len(faults) - FAULTS} more faults of annotations"

    def _check_expressions(self, video_id: str) -> Generator[str, None, dict[int, str]]:
        """Faults of a video's expressions; returns the objects that they name, faulty expressions too."""
        named: dict[int, str] = {}
        try:
            listed = self._listed(video_id)
        except InputError as error:
            yield str(error)
            return named
        for key, entry in listed.items():
            try:
                self._expression(video_id, key)
            except InputError as error:
                yield str(error)
            try:
                named.setdefault(object_number(entry.get("obj_id") if isinstance(entry, dict) else None, ""), key)
            except InputError:
                continue
        return named

    def _check_objects(
        self, video_id: str, named: dict[int, str], known: dict[str, Any] | None
    ) -> Generator[str, None, dict[int, list[str]] | None]:
        """Faults of the video in meta.json; returns number -> frames that it lists, None when nothing tells the objects."""
        if known is None:
            try:
                return {number: [] for number in self._named(video_id)} if self.all_named else None
            except InputError:
                return None
        where, entry = f"{self.folder / OBJECTS}, video {video_id}", known.get(video_id)
        objects = entry.get("objects") if isinstance(entry, dict) else None
        if not isinstance(objects, dict):
            yield f'{where}: wanted {{"objects": {{number: ...}}}}; copy the file again'
            return None
        found: dict[int, list[str]] = {}
        for key, held in objects.items():
            frames = held.get("frames", []) if isinstance(held, dict) else None
            if not isinstance(frames, list):
                yield f'{where}, object {key}: wanted {{"frames": list}}; copy the file again'
            try:
                found[object_number(key, f"{where}, object")] = frames if isinstance(frames, list) else []
            except InputError as error:
                yield str(error)
        for number in sorted(named.keys() - found.keys()):
            yield f"{self.file}, video {video_id}, expression {named[number]}: object {number} is not in {where}; copy both again"
        return found

    def _annotation_faults(
        self,
        video_id: str,
        names: list[str],
        size: tuple[int, int] | None,
        named: dict[int, str],
        shown: dict[int, list[str]] | None,
    ) -> Iterator[str]:
        """Faults of a video's PNGs. size: (H, W) of its frames, where one can be read; shown: as `_check_objects` gives it."""
        folder, allowed = self._annotations(video_id), self.unscored.union(shown or (), named)
        try:
            files = palette_files(folder)
        except InputError as error:
            yield str(error)
            return
        claimed = {frame for frames in (shown or {}).values() for frame in frames if isinstance(frame, str)}
        must = set(names) if self.every_frame else claimed.intersection(names)
        for name in sorted(must - files.keys()):
            yield _no_annotation(folder / f"{name}.png")
        unlisted = sorted(files.keys() - set(names))
        if names and unlisted:
            yield f"{folder}: no list names {len(unlisted)} of its annotations, {unlisted[0]}.png first; list or remove them"
        if names and len(unlisted) == len(files) and not must:
            yield f"{folder}: no listed frame of the video has an annotation here; copy the folder again"
        seen, whole = set[int](), True
        for name, path in files.items():
            try:
                held = numbers_in(read_palette(path, size))
            except InputError as error:
                yield str(error)
                whole = False
                continue
            # A faulty list of frames hides no object: then every picture counts.
            seen |= held if not names or name in names else set()
            if shown is not None and held - allowed:
                source = self.folder / OBJECTS if (self.folder / OBJECTS).exists() else self.file
                yield f"{path}: shows object {min(held - allowed)}, which {source} does not have in this video; copy both again"
        whole = whole and (not names or not files.keys().isdisjoint(names))
        for number in sorted(named.keys() - seen) if whole else ():
            yield self._never_shown(video_id, number, named[number])


def object_number(raw: object, where: str) -> int:
    """A pixel value 1 to 254 from what JSON holds, a number or its text. Raises InputError."""
    text = str(raw) if isinstance(raw, (str, int)) and not isinstance(raw, bool) else ""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 3 else 0
    if not 0 < number < 255:
        raise InputError(f'{where}: wanted an object number ("obj_id") from 1 to 254, came {raw!r:.40}; copy the file again')
    return number


def _no_annotation(path: Path) -> str:
    return f"{path}: the annotation is missing; copy it from the dataset's archive"
