"""A2D-Sentences: `Release/clips320H/<video>.mp4` and `text_annotations/a2d_annotation_with_instances/<video>/<frame>.h5`.

The sentences are read from MTTR's list `a2d_sentences_single_frame_<split>_annotations.json` (rows [text, video, frame,
instance], frames numbered from 1) if it exists, else from the original files: `text_annotations/a2d_annotation.txt`
(CSV video_id,instance_id,query), `Release/videoset.csv` (ninth column: 0 train, 1 test) and
`text_annotations/a2d_missed_videos.txt` (videos to leave out). Three to five frames of a video are annotated; a sentence
is scored in those whose HDF5 file lists its instance. HDF5: `instance` (n,) ids, `reMask` (n, W, H), or (W, H) if n is 1.

Source: Gavrilyuk et al., "Actor and Action Video Segmentation from a Sentence", CVPR 2018; Botach et al., "End-to-End Referring
Video Object Segmentation with Multimodal Transformers" (MTTR), CVPR 2022.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

import h5py
import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets.base import make_expression
from rvos_cache.datasets.json_files import read_rows
from rvos_cache.datasets.listed import RowDataset
from rvos_cache.datasets.samples import Sample
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, empty_rle, encode
from rvos_cache.media.frames import file_video
from rvos_cache.system.text_files import read_text
from rvos_cache.types import Expression, GroundTruth, Video

SPLITS = {"train": "0", "test": "1"}
"""Split -> its number in videoset.csv."""
LIST = "a2d_sentences_single_frame_{}_annotations.json"
TEXT, MISSED = "text_annotations/a2d_annotation.txt", "text_annotations/a2d_missed_videos.txt"
SUBSETS, CLIPS = "Release/videoset.csv", "Release/clips320H"
MASKS = "text_annotations/a2d_annotation_with_instances"
NOT_A_NUMBER = "1 (copy)"
"""An instance id of the published CSV (video T6bNPuKV-wY); MTTR leaves out its sentence."""
FILTERS = {*range(1, 7), h5py.h5z.FILTER_LZF}
"""The compression filters of HDF5 itself. For any other filter it would load a plug-in, which is code."""


@dataclass
class _Entry:
    """The rows of one video. sentences: instance -> text; frames: instance -> its listed frames, from 1, in order."""

    sentences: dict[int, str] = field(default_factory=dict)
    frames: dict[int, list[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, location: str, text: object, instance: object, frame: object) -> None:
        """Add one row of the list, or a message to `faults`."""
        if not isinstance(text, str) or not _is_count(instance) or not _is_count(frame) or frame == 0:
            self.faults.append(f"{location}: expected [text, video, frame from 1, instance]; copy the file again")
        elif self.sentences.setdefault(instance, text) != text:
            self.faults.append(f"{location}: instance {instance} has another text in an earlier row; keep one")
        elif frame in self.frames.setdefault(instance, []):
            self.faults.append(f"{location}: frame {frame} of instance {instance} is listed twice; keep one row")
        else:
            self.frames[instance].append(frame)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


class A2dSentences(RowDataset[_Entry]):
    """One split of A2D-Sentences. An expression is the sentence of one instance; its id is the instance's number."""

    name = "a2d-sentences"
    protocol = "image"
    one_object = True
    upright = False

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError: if neither MTTR's list nor the original files exist, or they cannot be read."""
        super().__init__(root, split)
        mttr_list = self.root / LIST.format(split)
        self.has_list = mttr_list.exists()
        self.file = mttr_list if self.has_list else self.root / TEXT
        self.duplicate_keys = []
        self.videos = _from_list(mttr_list) if self.has_list else _from_csv(self.root, SPLITS[split])
        self.shapes: dict[str, tuple[int, tuple[int, int]]] = {}

    def _check_split(self) -> None:
        if self.split not in self.splits(self.root):
            raise self._no_split(f"{self.root / LIST.format(self.split)}: not found, nor {TEXT} with {SUBSETS}")

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the splits whose list exists, or all if the original files exist."""
        original = all((Path(root) / name).exists() for name in (TEXT, SUBSETS))
        return [split for split in SPLITS if original or (Path(root) / LIST.format(split)).exists()]

    def video(self, video_id: str) -> Video:
        """Return all frames of the mp4, named from "00001" like the annotations.

        Raises InputError: if the mp4 is missing or cannot be decoded.
        """
        self._entry(video_id)
        path = self.root / CLIPS / f"{video_id}.mp4"
        if not path.exists():
            raise InputError(f"{path}: the video is missing; copy it from A2D's archive (Release/clips320H)")
        video = file_video(path, video_id, upright=self.upright)
        self.shapes[video_id] = (len(video), video.size)
        return replace(video, frame_names=tuple(f"{t:05d}" for t in range(1, len(video) + 1)))

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the expressions in file order. Raises InputError: if a row cannot be read or a text is empty."""
        entry = self._valid_entry(video_id)
        return tuple(self._expression(video_id, instance, text) for instance, text in entry.sentences.items())

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """Return the ids in file order, also of expressions that cannot be read. Raises InputError: if not listed."""
        return tuple(str(instance) for instance in self._entry(video_id).sentences)

    def _expression(self, video_id: str, instance: int, text: str) -> Expression:
        return make_expression(self.file, video_id, str(instance), text, (_object_id(video_id, instance),))

    def ground_truth(self, video_id: str) -> GroundTruth:
        """Return the instances that have a sentence, with ids "<video>/<instance>".

        annotated: the frames that have an HDF5 file; an instance that such a file does not list has no pixels there.
        Raises InputError: if an annotation is damaged or missing.
        """
        entry = self._entry(video_id)
        frames, size = self._shape(video_id)
        rows = {instance: [empty_rle(size)] * frames for instance in entry.sentences}
        annotated = np.zeros(frames, bool)
        files = self._annotations(video_id)
        for fault in self._missing_annotations(entry, files, video_id):
            raise InputError(fault)
        for number, path in files.items():
            ids, masks = self._read(entry, number, path, frames, size)
            annotated[number - 1] = True
            for instance in rows.keys() & set(ids):
                # The first of equal ids, as in MTTR.
                rows[instance][number - 1] = encode(masks[ids.index(instance)])
        object_ids = tuple(_object_id(video_id, instance) for instance in rows)
        return GroundTruth(object_ids, RleMasks.from_bytes(list(rows.values()), frames, size), annotated)

    def samples(self, video_id: str) -> tuple[Sample, ...]:
        """Return the scored frames: each sentence in the frames that list its instance. Raises InputError.

        Without MTTR's list they are taken from the HDF5 files, as in the code that made the list.
        """
        entry = self._entry(video_id)
        frames = entry.frames
        if not self.has_list:
            instances = {number: set(read_instances(path)) for number, path in self._annotations(video_id).items()}
            frames = {i: [number for number, ids in instances.items() if i in ids] for i in entry.sentences}
        return tuple(
            Sample(video_id, str(i), number - 1, f"v_{video_id}_f_{number}_i_{i}") for i in frames for number in frames[i]
        )

    def _check_video(self, video_id: str, entry: _Entry) -> Iterator[str]:
        for instance, text in entry.sentences.items():
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
        yield from self._missing_annotations(entry, files, video_id)
        for number, path in files.items():
            try:
                ids = read_instances(path) if shape is None else self._read(entry, number, path, *shape)[0]
                if len(set(ids)) != len(ids):
                    yield f"{path}: an instance is listed twice in {ids}, the first is used; copy the file again"
            except InputError as error:
                yield str(error)

    def _shape(self, video_id: str) -> tuple[int, tuple[int, int]]:
        """Return the number of frames and their size (H, W); an mp4 is decoded only once for them."""
        if video_id not in self.shapes:
            self.video(video_id)
        return self.shapes[video_id]

    def _annotations(self, video_id: str) -> dict[int, Path]:
        """Return frame, from 1 -> its HDF5 file. Raises InputError: if there is none, or a file is not named like a frame."""
        folder = self.root / MASKS / video_id
        files = {}
        for path in sorted(folder.glob("*.h5")):
            if path.name.startswith("."):
                continue
            if not path.stem.isdecimal() or path.stem != f"{int(path.stem):05d}" or int(path.stem) < 1:
                raise InputError(f"{path}: the name must be a frame's number, from 00001 on; remove or rename the file")
            files[int(path.stem)] = path
        if not files:
            raise InputError(f"{folder}: no annotated frames (*.h5); copy them from the archive of A2D-Sentences")
        return files

    def _missing_annotations(self, entry: _Entry, files: dict[int, Path], video_id: str) -> Iterator[str]:
        """Yield a message for each listed frame without a file."""
        for number in sorted({n for frames in entry.frames.values() for n in frames} - set(files)):
            path = self.root / MASKS / video_id / f"{number:05d}.h5"
            yield f"{path}: not found, {self.file.name} lists it; copy it from the archive of A2D-Sentences"

    def _read(
        self, entry: _Entry, number: int, path: Path, frames: int, size: tuple[int, int]
    ) -> tuple[list[int], NDArray[np.bool_]]:
        """Return `read_masks` of frame `number`. Raises InputError: if it does not agree with the video and the list."""
        if number > frames:
            raise InputError(f"{path}: frame {number} of a video that decodes to {frames} frames; copy the mp4 again")
        ids, masks = read_masks(path, size)
        missing = [i for i, listed in entry.frames.items() if number in listed and i not in ids]
        if missing:
            raise InputError(f"{path}: instance {missing[0]} is not in {ids}, {self.file.name} lists it; copy both again")
        return ids, masks


def _object_id(video_id: str, instance: int) -> str:
    # Instances are numbered within a video; object ids are unique in the dataset.
    return f"{video_id}/{instance}"


def read_instances(path: Path) -> list[int]:
    """Return the instance ids of an annotated frame. Raises InputError: if the file is damaged."""
    with _open(path) as file:
        return _instances(file, path)


def read_masks(path: Path, size: tuple[int, int]) -> tuple[list[int], NDArray[np.bool_]]:
    """Return the instance ids (n) of an annotated frame and their masks (n, H, W). size: (H, W) of its video.

    Raises InputError: if the file is damaged, or its masks are not of that size.
    """
    with _open(path) as file:
        ids = _instances(file, path)
        if not ids:
            return [], np.zeros((0, *size), bool)
        # MATLAB writes columns first, and drops a dimension of one.
        expected = (len(ids), size[1], size[0])
        array = _array(file, "reMask", path)
        if array.shape != expected and not (len(ids) == 1 and array.shape == expected[1:]):
            raise InputError(f"{path}: reMask is {array.shape}, expected {expected} (instances, width, height); copy it again")
        return ids, np.asarray(array[()]).reshape(expected).transpose(0, 2, 1) != 0


def _instances(file: h5py.File, path: Path) -> list[int]:
    array = _array(file, "instance", path)
    if array.size is None or array.size > 65_536:
        raise InputError(f"{path}: instance has {array.size} ids, expected one per object; copy the file again")
    values = np.ravel(array[()])
    # Checked as numbers, because a damaged file may have any values.
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise InputError(f"{path}: instance is {values[:5].tolist()}, expected whole numbers; copy the file again")
    return [int(v) for v in values]


def _array(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Return an array of numbers that is stored in the file itself. Raises InputError."""
    link = file.get(name, getlink=True)
    if link is None:
        raise InputError(f"{path}: no dataset {name!r}; copy the file again from the archive of A2D-Sentences")
    array = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "buif" or array.is_virtual or array.external:
        raise InputError(f"{path}: {name!r} must be an array of numbers inside the file; copy the file again")
    creation = array.id.get_create_plist()
    if any(creation.get_filter(i)[0] not in FILTERS for i in range(creation.get_nfilters())):
        raise InputError(f"{path}: {name!r} is compressed by a plug-in, which is not loaded; copy the file again")
    return array


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file. Every error of h5py inside the `with` becomes an InputError of one line."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; copy it from the archive of A2D-Sentences") from error
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a whole HDF5 file ({reason}); copy it again from the archive of A2D-Sentences") from error


def _from_list(path: Path) -> dict[str, _Entry]:
    """Return video -> its rows in MTTR's list. Raises InputError: if a row names no video."""
    videos: dict[str, _Entry] = {}
    for number, row in enumerate(read_rows(path), 1):
        location = f"{path}, row {number}"
        if len(row) != 4 or not isinstance(row[1], str):
            raise InputError(f"{location}: expected [text, video, frame, instance]; copy the file again")
        text, video_id, frame, instance = row
        videos.setdefault(video_id, _Entry()).add(location, text, instance, frame)
    return videos


def _from_csv(root: Path, subset: str) -> dict[str, _Entry]:
    """Return the sentences of a subset's videos. Raises InputError: if a file cannot be read or a row has other columns."""
    left_out = {row[0] for _, row in _csv(root / MISSED)} if (root / MISSED).exists() else set()
    video_ids = set()
    for location, row in _csv(root / SUBSETS):
        if len(row) < 9 or row[8].strip() not in SPLITS.values():
            raise InputError(f"{location}: expected nine columns, the last 0 (train) or 1 (test); copy the file again")
        if row[8].strip() == subset and row[0] not in left_out:
            video_ids.add(row[0])
    videos: dict[str, _Entry] = {}
    for number, (location, row) in enumerate(_csv(root / TEXT)):
        if number == 0 and row != ["video_id", "instance_id", "query"]:
            raise InputError(f"{location}: expected the header video_id,instance_id,query; copy the file again")
        if len(row) != 3:
            columns = f"{len(row)} columns, expected video_id,instance_id,query"
            raise InputError(f"{location}: {columns}; put texts with a comma in quotes")
        if number and row[0] in video_ids and row[1] != NOT_A_NUMBER:
            entry = videos.setdefault(row[0], _Entry())
            if not row[1].isdecimal():
                entry.faults.append(f"{location}: instance {row[1]!r} is no number; copy the file again")
            elif int(row[1]) in entry.sentences:
                entry.faults.append(f"{location}: instance {row[1]} has a sentence in an earlier row; keep one")
            else:
                entry.sentences[int(row[1])] = row[2]
    return videos


def _csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (location, row) of each row that is not empty. Raises InputError: if the file cannot be read."""
    try:
        rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        yield from ((f"{path}, line {rows.line_num}", row) for row in rows if row)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy the file again") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again") from error
