"""JHMDB-Sentences: `Rename_Images/<action>/<video>/<frame>.png` and `puppet_mask/<action>/<video>/puppet_mask.mat`.

For evaluation alone, with the fixed list that MTTR drew: `jhmdb_sentences_samples_metadata.json`, rows [video, path of a
frame, path of its masks, frames of the video, text], three frames a video, counted from 1. The paths begin with the folder of
whoever drew the list; only what follows counts. `part_mask` (H, W, T) in the .mat is the actor in every frame; images past the
last mask are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets.matlab import read_array
from rvos_cache.datasets.samples import ListedSplit, Sample, read_rows
from rvos_cache.errors import InputError
from rvos_cache.frames import image_size, read_image
from rvos_cache.masks import RleMasks, empty_rle, encode
from rvos_cache.types import Expression, GroundTruth, Video, check_id

SPLIT = "test"
LIST = "jhmdb_sentences_samples_metadata.json"
FRAMES, MASKS, MASK_FILE, ARRAY = "Rename_Images", "puppet_mask", "puppet_mask.mat", "part_mask"
SENTENCE = "0"
"""The id of a video's one expression."""
LONGEST = 1000
"""Frames of the longest video that is read; the dataset's have 40."""


@dataclass
class _Entry:
    """What the list says of one video. frames: those that are scored, from 1; count: frames that have a mask."""

    action: str
    count: int
    text: str
    frames: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class JhmdbSentences(ListedSplit[_Entry]):
    """JHMDB-Sentences has one split, "test". A video has one sentence, about its one annotated actor."""

    name = "jhmdb-sentences"
    one_object = True
    has_ground_truth = True

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = Path(root), split
        self.file = self.root / LIST
        if split not in self.splits(self.root):
            there = ", ".join(self.splits(self.root)) or "none"
            raise InputError(
                f"{self.file}: not found for split {split!r}; splits of {self.root}: {there}; give another --root or --split, "
                "or copy the list from MTTR's repository (other frames are another test)"
            )
        self.videos: dict[str, _Entry] = {}
        for number, row in enumerate(read_rows(self.file), 1):
            _add(self.videos, row, f"{self.file}, row {number}")

    @staticmethod
    def splits(root: Path) -> list[str]:
        """ "test" where MTTR's list is."""
        return [SPLIT] if (Path(root) / LIST).exists() else []

    def video(self, video_id: str) -> Video:
        """The frames that have a mask. Raises InputError: not listed, a bad id, or the first frame is missing."""
        entry = self._sound(video_id)
        paths = [self._folder(FRAMES, video_id) / f"{name}.png" for name in _names(entry.count)]
        return Video(video_id, tuple(_names(entry.count)), image_size(paths[0]), lambda t: read_image(paths[t]))

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """The one sentence. Raises InputError for a row that cannot be read or an empty text."""
        entry = self._sound(video_id)
        try:
            return (Expression(video_id, SENTENCE, entry.text, (video_id,)),)
        except InputError as error:
            raise InputError(f"{self.file}, {error}") from error

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """The one id, also where the sentence cannot be read. Raises InputError."""
        self._entry(video_id)
        return (SENTENCE,)

    def ground_truth(self, video_id: str) -> GroundTruth:
        """The actor, named as the video, in the listed frames; those are `annotated`. Raises InputError: damaged masks."""
        entry, video = self._sound(video_id), self.video(video_id)
        masks = self._masks(video_id, video.size)
        row = [empty_rle(video.size)] * entry.count
        annotated = np.zeros(entry.count, bool)
        for number in entry.frames:
            row[number - 1] = encode(masks[..., number - 1])
            annotated[number - 1] = True
        return GroundTruth((video_id,), RleMasks.from_bytes([row], entry.count, video.size), annotated)

    def samples(self, video_id: str) -> tuple[Sample, ...]:
        """The listed frames. Raises InputError."""
        frames = self._sound(video_id).frames
        return tuple(Sample(video_id, SENTENCE, n - 1, f"v_{video_id}_f_{n}") for n in frames)

    def _check_video(self, video_id: str, entry: _Entry) -> Iterator[str]:
        if entry.faults:
            # Their paths are not known.
            return
        try:
            self.expressions(video_id)
        except InputError as error:
            yield str(error)
        size = None
        for name in _names(entry.count):
            path = self._folder(FRAMES, video_id) / f"{name}.png"
            try:
                found = read_image(path).shape[:2]
            except InputError as error:
                yield str(error)
                continue
            size = size or found
            if found != size:
                yield f"{path}: {found} pixels (height, width), the first frame has {size}; copy it again from the dataset"
        try:
            self._masks(video_id, size)
        except InputError as error:
            yield str(error)

    def _masks(self, video_id: str, size: tuple[int, ...] | None) -> NDArray[np.bool_]:
        """The masks of all frames, bool (H, W, T), as large as the video's frames. Raises InputError."""
        path, count = self._folder(MASKS, video_id) / MASK_FILE, self._entry(video_id).count
        height, width = size or (4096, 4096)
        held = read_array(path, ARRAY, height * width * LONGEST)
        # MATLAB drops a last dimension of one.
        shape = (*held.shape, 1) if held.ndim == 2 else held.shape
        if len(shape) != 3 or (size is not None and shape[:2] != size):
            wanted = "(height, width, frames)" if size is None else f"({height}, {width}, frames)"
            raise InputError(f"{path}: {ARRAY} is {held.shape}, its video wants {wanted}; copy it again from the dataset")
        if shape[2] < count:
            raise InputError(f"{path}: {shape[2]} masks, {self.file.name} says {count} frames; copy both again")
        return held.reshape(shape) != 0

    def _folder(self, kind: str, video_id: str) -> Path:
        return self.root / kind / self._entry(video_id).action / video_id


def _names(count: int) -> list[str]:
    return [f"{n:05d}" for n in range(1, count + 1)]


def _add(videos: dict[str, _Entry], row: list[Any], where: str) -> None:
    """One row of the list; what is wrong with it goes to its video. Raises InputError when it has none."""
    if len(row) != 5 or not isinstance(row[0], str):
        raise InputError(f"{where}: wanted [video, path of a frame, path of its masks, frames, text]; copy the file again")
    video_id, frame, masks, count, text = row
    entry = videos.setdefault(video_id, _Entry("", 0, ""))
    if not all(isinstance(v, str) for v in (frame, masks, text)) or type(count) is not int or not 0 < count <= LONGEST:
        entry.faults.append(f"{where}: wanted two paths, 1 to {LONGEST} frames and a text; copy the file again")
        return
    # Whatever lies before them is the folder of whoever drew the list.
    at, at_masks = frame.split("/")[-4:], masks.split("/")[-4:]
    action, stem = at[1] if len(at) == 4 else "", at[-1].removesuffix(".png")
    number = int(stem) if stem.isdecimal() else 0
    if at != [FRAMES, action, video_id, f"{number:05d}.png"] or at_masks != [MASKS, action, video_id, MASK_FILE]:
        entry.faults.append(
            f"{where}: wanted .../{FRAMES}/<action>/{video_id}/<frame>.png and .../{MASKS}/<action>/{video_id}/{MASK_FILE}, "
            f"found {frame!r} and {masks!r}; copy the file again"
        )
        return
    try:
        check_id(action, f"{where}, action")
    except InputError as error:
        entry.faults.append(str(error))
        return
    if not entry.frames:
        entry.action, entry.count, entry.text = action, count, text
    if (entry.action, entry.count, entry.text) != (action, count, text):
        entry.faults.append(f"{where}: action, frames or text differ from the video's other rows; copy the file again")
    elif number in entry.frames or not 0 < number <= count:
        entry.faults.append(f"{where}: frame {number} of {count} stands twice or is none of them; copy the file again")
    else:
        entry.frames.append(number)
