"""A2D-Sentences: `Release/clips320H/<video>.mp4` and `text_annotations/a2d_annotation_with_instances/<video>/<frame>.h5`.

The sentences come from MTTR's list `a2d_sentences_single_frame_<split>_annotations.json` (rows [text, video, frame,
instance], frames counted from 1) where it is there, else from the original files: `text_annotations/a2d_annotation.txt`
(CSV video_id,instance_id,query), `Release/videoset.csv` (ninth column: 0 train, 1 test) and
`text_annotations/a2d_missed_videos.txt` (videos to leave out). Three to five frames of a video are annotated; a sentence
is scored in those whose HDF5 file lists its instance. HDF5: `instance` (n,) ids, `reMask` (n, W, H), or (W, H) when n is 1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

import h5py
import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets.samples import ListedSplit, Sample, read_rows
from rvos_cache.errors import InputError
from rvos_cache.frames import file_video
from rvos_cache.masks import RleMasks, empty_rle, encode
from rvos_cache.types import Expression, GroundTruth, Video

SPLITS = {"train": "0", "test": "1"}
"""Split -> its number in videoset.csv."""
LIST = "a2d_sentences_single_frame_{}_annotations.json"
TEXT, MISSED = "text_annotations/a2d_annotation.txt", "text_annotations/a2d_missed_videos.txt"
SUBSETS, CLIPS = "Release/videoset.csv", "Release/clips320H"
MASKS = "text_annotations/a2d_annotation_with_instances"
SLIP = "1 (copy)"
"""An instance id of the published CSV (video T6bNPuKV-wY) that is no number: MTTR leaves its sentence out."""
FILTERS = {*range(1, 7), h5py.h5z.FILTER_LZF}
"""HDF5's own compressions; for any other it would load a plug-in, which is code."""


@dataclass
class _Entry:
    """What the files say of one video. said: instance -> text; frames: instance -> its listed frames, from 1, in order."""

    said: dict[int, str] = field(default_factory=dict)
    frames: dict[int, list[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, where: str, text: object, instance: object, frame: object) -> None:
        """One row of the list; what is wrong with it goes to `faults`."""
        if not isinstance(text, str) or not _is_count(instance) or not _is_count(frame) or frame == 0:
            self.faults.append(f"{where}: wanted [text, video, frame from 1, instance]; copy the file again")
        elif self.said.setdefault(instance, text) != text:
            self.faults.append(f"{where}: instance {instance} has another text above; keep one")
        elif frame in self.frames.setdefault(instance, []):
            self.faults.append(f"{where}: frame {frame} of instance {instance} stands twice; keep one row")
        else:
            self.frames[instance].append(frame)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


class A2dSentences(ListedSplit[_Entry]):
    """One split of A2D-Sentences. An expression is one instance's sentence, its id the instance's number."""

    name = "a2d-sentences"
    one_object = True
    has_ground_truth = True

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = Path(root), split
        if split not in self.splits(self.root):
            there = ", ".join(self.splits(self.root)) or "none"
            raise InputError(
                f"{self.root / LIST.format(split)}: not found, nor {TEXT} with {SUBSETS}; splits of {self.root}: {there}; "
                "give another --root or --split"
            )
        listed = self.root / LIST.format(split)
        self.listed = listed.exists()
        self.file = listed if self.listed else self.root / TEXT
        self.videos = _from_list(listed) if self.listed else _from_csv(self.root, SPLITS[split])
        self.shapes: dict[str, tuple[int, tuple[int, int]]] = {}

    @staticmethod
    def splits(root: Path) -> list[str]:
        """The splits whose list is there, or all where the original files are."""
        original = all((Path(root) / name).exists() for name in (TEXT, SUBSETS))
        return [split for split in SPLITS if original or (Path(root) / LIST.format(split)).exists()]

    def video(self, video_id: str) -> Video:
        """All frames of the mp4, named from "00001" as the annotations are. Raises InputError: missing, or not decodable."""
        self._entry(video_id)
        path = self.root / CLIPS / f"{video_id}.mp4"
        if not path.exists():
            raise InputError(f"{path}: the video is missing; copy it from A2D's archive (Release/clips320H)")
        film = file_video(path, video_id)
        self.shapes[video_id] = (len(film), film.size)
        return replace(film, frame_names=tuple(f"{t:05d}" for t in range(1, len(film) + 1)))

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """In file order. Raises InputError for a row that cannot be read or an empty text."""
        entry = self._entry(video_id)
        if entry.faults:
            raise InputError(entry.faults[0])
        return tuple(self._expression(video_id, instance, text) for instance, text in entry.said.items())

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """The ids in file order, also those of expressions that cannot be read. Raises InputError."""
        return tuple(str(instance) for instance in self._entry(video_id).said)

    def _expression(self, video_id: str, instance: int, text: str) -> Expression:
        try:
            return Expression(video_id, str(instance), text, (_object_id(video_id, instance),))
        except InputError as error:
            raise InputError(f"{self.file}, {error}") from error

    def ground_truth(self, video_id: str) -> GroundTruth:
        """The instances that have a sentence, "<video>/<instance>". Raises InputError for a damaged or missing annotation.

        annotated: the frames that have an HDF5 file; an instance that one of them does not list is empty there.
        """
        entry = self._entry(video_id)
        frames, size = self._shape(video_id)
        rows = {instance: [empty_rle(size)] * frames for instance in entry.said}
        annotated = np.zeros(frames, bool)
        files = self._annotations(video_id)
        for lost in self._lost(entry, files, video_id):
            raise InputError(lost)
        for number, path in files.items():
            ids, masks = self._read(entry, number, path, frames, size)
            annotated[number - 1] = True
            for instance in rows.keys() & set(ids):
                # The first of equal ids, as MTTR.
                rows[instance][number - 1] = encode(masks[ids.index(instance)])
        objects = tuple(_object_id(video_id, instance) for instance in rows)
        return GroundTruth(objects, RleMasks.from_bytes(list(rows.values()), frames, size), annotated)

    def samples(self, video_id: str) -> tuple[Sample, ...]:
        """The frames that the benchmark scores: each sentence in the frames that list its instance. Raises InputError.

        Without MTTR's list the HDF5 files say which, as in the code that made the list.
        """
        entry = self._entry(video_id)
        frames = entry.frames
        if not self.listed:
            held = {number: set(read_instances(path)) for number, path in self._annotations(video_id).items()}
            frames = {i: [number for number, ids in held.items() if i in ids] for i in entry.said}
        return tuple(
            Sample(video_id, str(i), number - 1, f"v_{video_id}_f_{number}_i_{i}") for i in frames for number in frames[i]
        )

    def _check_video(self, video_id: str, entry: _Entry) -> Iterator[str]:
        for instance, text in entry.said.items():
            try:
                self._expression(video_id, instance, text)
            except InputError as error:
                yield str(error)
        shape, files = None, None
        try:
            self.video(video_id)
            shape = self.shapes[video_id]
        except InputError as error:
            yield str(error)
        try:
            files = self._annotations(video_id)
        except InputError as error:
            yield str(error)
            return
        yield from self._lost(entry, files, video_id)
        for number, path in files.items():
            try:
                ids = read_instances(path) if shape is None else self._read(entry, number, path, *shape)[0]
                if len(set(ids)) != len(ids):
                    yield f"{path}: an instance is listed twice in {ids}, the first counts; copy the file again"
            except InputError as error:
                yield str(error)

    def _shape(self, video_id: str) -> tuple[int, tuple[int, int]]:
        """Frames and size (H, W); an mp4 is decoded once to know them."""
        if video_id not in self.shapes:
            self.video(video_id)
        return self.shapes[video_id]

    def _annotations(self, video_id: str) -> dict[int, Path]:
        """Frame, from 1 -> its HDF5 file. Raises InputError: no folder, no file, or a name that is no frame's."""
        folder = self.root / MASKS / video_id
        found = {}
        for path in sorted(folder.glob("*.h5")):
            if path.name.startswith("."):
                continue
            if not path.stem.isdecimal() or path.stem != f"{int(path.stem):05d}" or int(path.stem) < 1:
                raise InputError(f"{path}: the name must be a frame's number from 00001 on; remove the file or name it again")
            found[int(path.stem)] = path
        if not found:
            raise InputError(f"{folder}: no annotated frames (*.h5); copy them from the archive of A2D-Sentences")
        return found

    def _lost(self, entry: _Entry, files: dict[int, Path], video_id: str) -> Iterator[str]:
        """Frames that the list names and that have no file."""
        for number in sorted({n for frames in entry.frames.values() for n in frames} - set(files)):
            path = self.root / MASKS / video_id / f"{number:05d}.h5"
            yield f"{path}: not found, {self.file.name} names it; copy it from the archive of A2D-Sentences"

    def _read(
        self, entry: _Entry, number: int, path: Path, frames: int, size: tuple[int, int]
    ) -> tuple[list[int], NDArray[np.bool_]]:
        """`read_masks`, held against the video and the list."""
        if number > frames:
            raise InputError(f"{path}: frame {number} of a video that decodes to {frames} frames; copy the mp4 again")
        ids, masks = read_masks(path, size)
        lost = [i for i, listed in entry.frames.items() if number in listed and i not in ids]
        if lost:
            raise InputError(f"{path}: instance {lost[0]} is not in {ids}, {self.file.name} names it; copy both again")
        return ids, masks


def _object_id(video_id: str, instance: int) -> str:
    # Instances are counted in each video; an object id is unique in the dataset.
    return f"{video_id}/{instance}"


def read_instances(path: Path) -> list[int]:
    """The instance ids of an annotated frame. Raises InputError when the file is damaged."""
    with _opened(path) as file:
        return _instances(file, path)


def read_masks(path: Path, size: tuple[int, int]) -> tuple[list[int], NDArray[np.bool_]]:
    """The instance ids (n) of an annotated frame and their masks (n, H, W); size: (H, W) of its video.

    Raises InputError when the file is damaged, or its masks are not of that size.
    """
    with _opened(path) as file:
        ids = _instances(file, path)
        if not ids:
            return [], np.zeros((0, *size), bool)
        # Files are written by MATLAB: columns first, and no dimension of one.
        wanted = (len(ids), size[1], size[0])
        held = _dataset(file, "reMask", path)
        if held.shape != wanted and not (len(ids) == 1 and held.shape == wanted[1:]):
            raise InputError(
                f"{path}: reMask is {held.shape}, its video wants {wanted} (instances, width, height); copy it again"
            )
        return ids, np.asarray(held[()]).reshape(wanted).transpose(0, 2, 1) != 0


def _instances(file: h5py.File, path: Path) -> list[int]:
    held = _dataset(file, "instance", path)
    if held.size is None or held.size > 65_536:
        raise InputError(f"{path}: instance holds {held.size} ids, wanted one per object; copy the file again")
    values = np.ravel(held[()])
    # Checked as numbers, because a damaged file may hold any.
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise InputError(f"{path}: instance holds {values[:5].tolist()}, wanted whole numbers; copy the file again")
    return [int(v) for v in values]


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A dataset of numbers that lies in the file itself."""
    link = file.get(name, getlink=True)
    if link is None:
        raise InputError(f"{path}: no dataset {name!r}; copy the file again from the archive of A2D-Sentences")
    held = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(held, h5py.Dataset) or held.dtype.kind not in "buif" or held.is_virtual or held.external:
        raise InputError(f"{path}: {name!r} must be an array of numbers inside the file; copy the file again")
    made = held.id.get_create_plist()
    if any(made.get_filter(i)[0] not in FILTERS for i in range(made.get_nfilters())):
        raise InputError(f"{path}: {name!r} is compressed by a plug-in, which is not loaded; copy the file again")
    return held


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file; whatever h5py says of a damaged one is an InputError of one line."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; copy it from the archive of A2D-Sentences") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path}: not a whole HDF5 file ({why}); copy it again from the archive of A2D-Sentences") from error


def _from_list(path: Path) -> dict[str, _Entry]:
    """MTTR's list by video. Raises InputError when a row has no video."""
    videos: dict[str, _Entry] = {}
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}, row {number}"
        if len(row) != 4 or not isinstance(row[1], str):
            raise InputError(f"{where}: wanted [text, video, frame, instance]; copy the file again")
        text, video_id, frame, instance = row
        videos.setdefault(video_id, _Entry()).add(where, text, instance, frame)
    return videos


def _from_csv(root: Path, subset: str) -> dict[str, _Entry]:
    """The sentences of a subset's videos. Raises InputError when a file cannot be read or a row has other columns."""
    unused = {row[0] for _, row in _csv(root / MISSED)} if (root / MISSED).exists() else set()
    used = set()
    for where, row in _csv(root / SUBSETS):
        if len(row) < 9 or row[8].strip() not in SPLITS.values():
            raise InputError(f"{where}: wanted nine columns, the last 0 (train) or 1 (test); copy the file again")
        if row[8].strip() == subset and row[0] not in unused:
            used.add(row[0])
    videos: dict[str, _Entry] = {}
    for number, (where, row) in enumerate(_csv(root / TEXT)):
        if number == 0 and row != ["video_id", "instance_id", "query"]:
            raise InputError(f"{where}: wanted the header video_id,instance_id,query; copy the file again")
        if len(row) != 3:
            raise InputError(f"{where}: {len(row)} columns, wanted video_id,instance_id,query; quote texts that hold a comma")
        if number and row[0] in used and row[1] != SLIP:
            entry = videos.setdefault(row[0], _Entry())
            if not row[1].isdecimal():
                entry.faults.append(f"{where}: instance {row[1]!r} is no number; copy the file again")
            elif int(row[1]) in entry.said:
                entry.faults.append(f"{where}: instance {row[1]} has a sentence above; keep one")
            else:
                entry.said[int(row[1])] = row[2]
    return videos


def _csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Rows and where they stand. Raises InputError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            yield from ((f"{path}, line {rows.line_num}", row) for row in rows if row)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again") from error
