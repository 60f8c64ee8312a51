"""Videos of the user's own: `videos/<video>/<frame>.jpg` (or .png), or `videos/<video>.mp4`, and `expressions.json`.

expressions.json: {video: {id: text}}, or {video: [texts]}, whose ids are "0", "1", ... in order. In place of a text may stand
{"text": text, "objects": [numbers]}, [] where nothing matches; with `masks/<video>/<frame>.png`, palette PNGs whose pixels
hold object numbers, the split then shows its answers. Frames without a PNG are not annotated; an mp4's are named "00000" on.
Splits are folders that hold these, `<root>/<split>/`; where they lie in the root itself the one split is "all".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.datasets.base import Dataset
from rvos_cache.datasets.meta_expressions import check_frames, check_once, read_json, twice
from rvos_cache.datasets.palette import numbers_in, palette_files, palette_masks, read_palette
from rvos_cache.errors import InputError
from rvos_cache.frames import file_video, folder_video, frame_files
from rvos_cache.types import Expression, GroundTruth, Video, check_id

ALL = "all"
"""The split of a root without splits."""
EXPRESSIONS, VIDEOS, MASKS = "expressions.json", "videos", "masks"
FAULTS = 20
"""Faults of masks that `check` names per video; the others are counted."""


class Plain(Dataset):
    """One split of the user's own videos."""

    name = "plain"
    one_object = False

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = Path(root), split
        there = self.splits(self.root)
        if split not in there:
            raise InputError(
                f"{self.root}: no split {split!r}, which would hold {EXPRESSIONS}; splits: {', '.join(there) or 'none'}; "
                "give another --root or --split"
            )
        whole, folder = self.root / EXPRESSIONS, self.root / split
        if split == ALL and whole.exists() and (folder / EXPRESSIONS).exists():
            raise InputError(f"{whole} and {folder / EXPRESSIONS}: both are split {ALL!r}; name the folder differently")
        self.folder = self.root if split == ALL and whole.exists() else folder
        self.file, self.masks = self.folder / EXPRESSIONS, self.folder / MASKS
        self.repeated: list[str] = []
        content = read_json(self.file, self.repeated)
        if not isinstance(content, dict) or not content:
            raise InputError(f"{self.file}: wanted an object of video: expressions, with one video or more; write it again")
        self.videos: dict[str, Any] = content
        said = [e for listed in self.videos.values() for e in _by_id(listed).values()]
        self.named = any(isinstance(e, dict) and "objects" in e for e in said)
        self.shapes: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {}

    @staticmethod
    def splits(root: Path) -> list[str]:
        """The folders with expressions, sorted, and "all" where the root itself has them."""
        found = {p.parent.name for p in Path(root).glob(f"[!.]*/{EXPRESSIONS}")}
        return sorted(found | ({ALL} if (Path(root) / EXPRESSIONS).exists() else set()))

    @property
    def has_ground_truth(self) -> bool:
        """Whether there are masks and some expression names its objects; one that does not is a fault then."""
        return self.named and self.masks.is_dir()

    def video_ids(self) -> tuple[str, ...]:
        """The videos in file order. Raises InputError when a key of the list stands twice."""
        check_once(self.file, self.repeated)
        return tuple(self.videos)

    def video(self, video_id: str) -> Video:
        """Raises InputError: not listed, an id that cannot name a folder, missing frames, or both a folder and an mp4."""
        folder, film = self._source(video_id)
        video = folder_video(folder, video_id) if film is None else file_video(film, video_id)
        self._check_names(folder, video.frame_names)
        self.shapes[video_id] = (video.frame_names, video.size)
        return video

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """In file order. Raises InputError: an empty text, a bad id, or no objects where the split shows its answers."""
        return tuple(self._expression(video_id, key) for key in self.expression_ids(video_id))

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """The ids in file order, also those of expressions that cannot be read. Raises InputError."""
        return tuple(self._said(video_id))

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """The objects that expressions name, "<video>-<number>". None where the split hides its answers.

        annotated: the frames that have a PNG, or all where no expression names an object. Raises InputError: a PNG is damaged
        or of another size, no frame has one, or none shows an object that is named.
        """
        if not self.has_ground_truth:
            return None
        named = self._named(video_id)
        frames, size = self._shape(video_id)
        files = palette_files(self.masks / video_id) if named else {}
        paths = [files.get(name) for name in frames]
        if named and not any(paths):
            raise InputError(self._no_masks(video_id))
        masks = palette_masks(paths, list(named), size)
        lost = np.flatnonzero(masks.area().sum(1) == 0)
        if len(lost):
            number = list(named)[lost[0]]
            raise InputError(self._never_shown(video_id, number, named[number]))
        annotated = np.array([path is not None or not named for path in paths], bool)
        return GroundTruth(tuple(f"{video_id}-{number}" for number in named), masks, annotated)

    def check(self) -> Iterator[str]:
        """Every fault, one line each; warns where only one of masks and named objects is there."""
        if self.named != self.masks.is_dir():
            there = f'no folder {self.masks} to the "objects" of expressions' if self.named else 'no expression has "objects"'
            warnings.warn(f"{self.file}: {there}, so the split hides its answers", stacklevel=2)
        for key in self.repeated:
            yield twice(self.file, key)
        for video_id in self.videos:
            yield from self._check_video(video_id)

    def _source(self, video_id: str) -> tuple[Path, Path | None]:
        """The folder of the video's frames, and its mp4 where it is one. Raises InputError."""
        self._said(video_id)
        folder, film = self.folder / VIDEOS / video_id, self.folder / VIDEOS / f"{video_id}.mp4"
        if folder.exists() and film.exists():
            raise InputError(f"{folder} and {film.name}: the video stands twice; keep one")
        if not folder.exists() and not film.exists():
            raise InputError(f"{folder}: not found, nor {film.name}, {self.file} lists it; put the video there or unlist it")
        return folder, film if film.exists() else None

    def _shape(self, video_id: str) -> tuple[tuple[str, ...], tuple[int, int]]:
        """Frame names and size (H, W); an mp4 is decoded once to know them."""
        if video_id not in self.shapes:
            self.video(video_id)
        return self.shapes[video_id]

    def _said(self, video_id: str) -> dict[str, Any]:
        """Expression id -> what the file says of it. Raises InputError: not listed, or no expressions."""
        check_id(video_id, f"{self.file}, video")
        if video_id not in self.videos:
            raise InputError(f"{self.file}: no video {video_id!r} in split {self.split}; rvos-cache check lists them")
        said = _by_id(self.videos[video_id])
        if not said:
            raise InputError(f"{self.file}, video {video_id}: wanted {{id: text}} or a list of texts, one or more; write them")
        return said

    def _expression(self, video_id: str, key: str) -> Expression:
        where, entry = f"{self.file}, video {video_id}, expression {key}", self._said(video_id)[key]
        text = entry.get("text") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise InputError(f'{where}: wanted a text or {{"text": text, "objects": [numbers]}}; write it again')
        targets = None
        if self.has_ground_truth:
            targets = tuple(f"{video_id}-{number}" for number in _objects(entry, where))
        try:
            return Expression(video_id, key, text, targets)
        except InputError as error:
            raise InputError(f"{self.file}, {error}") from error

    def _named(self, video_id: str) -> dict[int, str]:
        """Object number, rising, -> the first expression that names it. Raises InputError."""
        named: dict[int, str] = {}
        for key, entry in self._said(video_id).items():
            for number in _objects(entry, f"{self.file}, video {video_id}, expression {key}"):
                named.setdefault(number, key)
        return dict(sorted(named.items()))

    def _no_masks(self, video_id: str) -> str:
        return f"{self.masks / video_id}: no frame of the video has a mask here; name the PNGs as the frames"

    def _never_shown(self, video_id: str, number: int, key: str) -> str:
        where = f"{self.file}, video {video_id}, expression {key}"
        return f"{where}: no PNG in {self.masks / video_id} shows its object {number}; paint it or take it off the list"

    def _check_video(self, video_id: str) -> Iterator[str]:
        try:
            said = self._said(video_id)
        except InputError as error:
            yield str(error)
            return
        for key in said:
            try:
                self._expression(video_id, key)
            except InputError as error:
                yield str(error)
        names, size = tuple[str, ...](), None
        try:
            folder, film = self._source(video_id)
            if film is None:
                files = frame_files(folder)
                names = tuple(files)
                size = yield from check_frames(folder, list(files), files)
                self._check_names(folder, names)
            else:
                names, size = self._shape(video_id)
        except InputError as error:
            yield str(error)
        if self.has_ground_truth:
            faults = list(self._mask_faults(video_id, names, size))
            yield from faults[:FAULTS]
            if len(faults) > FAULTS:
                yield f"{self.masks / video_id}: {len(faults) - FAULTS} more faults of masks"

    @staticmethod
    def _check_names(folder: Path, names: tuple[str, ...]) -> None:
        """Raises InputError: no frame, or a name that masks cannot have everywhere."""
        if not names:
            raise InputError(f"{folder}: no frames in this folder; put the frames there or unlist the video")
        for name in names:
            check_id(name, f"{folder}, frame")

    def _mask_faults(self, video_id: str, names: tuple[str, ...], size: tuple[int, int] | None) -> Iterator[str]:
        """Faults of a video's PNGs. names: its frames, empty where they are not known; size: (H, W), where one can be read."""
        folder, named, whole = self.masks / video_id, dict[int, str](), True
        for key, entry in self._said(video_id).items():
            try:
                named |= {number: key for number in _objects(entry, "") if number not in named}
            except InputError:
                # Told with the expression; which objects it means is not known.
                whole = False
        if not named and not folder.exists():
            return
        try:
            files = palette_files(folder)
        except InputError as error:
            yield str(error)
            return
        unknown = sorted(files.keys() - set(names)) if names else []
        if unknown:
            yield f"{folder}: {len(unknown)} masks are of no frame, {unknown[0]}.png first; name them as the frames"
        if named and len(unknown) == len(files):
            yield self._no_masks(video_id)
            return
        seen, readable = set[int](), True
        for name, path in files.items():
            try:
                held = numbers_in(read_palette(path, size))
            except InputError as error:
                yield str(error)
                readable = False
                continue
            seen |= set() if name in unknown else held
            if whole and held - named.keys():
                strange = min(held - named.keys())
                yield f"{path}: shows object {strange}, which no expression of the video names; name it or paint it 0"
        for number in sorted(named.keys() - seen) if readable else ():
            yield self._never_shown(video_id, number, named[number])


def _by_id(listed: object) -> dict[str, Any]:
    """Expression id -> what stands for it; empty where it is neither an object nor a list."""
    if isinstance(listed, list):
        return {str(i): entry for i, entry in enumerate(listed)}
    return listed if isinstance(listed, dict) else {}


def _objects(entry: object, where: str) -> list[int]:
    """The object numbers that an expression names. Raises InputError."""
    numbers = entry.get("objects") if isinstance(entry, dict) else None
    if not isinstance(numbers, list):
        raise InputError(f'{where}: wanted {{"text": text, "objects": [numbers]}} as in other expressions; [] is nothing')
    for number in numbers:
        if type(number) is not int or not 0 < number < 255:
            raise InputError(f'{where}: wanted object numbers ("objects") from 1 to 254, came {number!r:.40}; write them again')
    return list(dict.fromkeys(numbers))
