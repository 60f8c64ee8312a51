"""JHMDB-Sentences: `Rename_Images/<action>/<video>/<frame>.png` and `puppet_mask/<action>/<video>/puppet_mask.mat`.

For evaluation only, with the fixed list of frames that MTTR sampled: `jhmdb_sentences_samples_metadata.json`, rows [video, path
of a frame, path of its masks, number of frames, text], three frames per video, numbered from 1. The paths begin with a folder of
MTTR's authors; only what follows it is used. `part_mask` (H, W, T) in the .mat file is the actor in every frame; images after
the last mask are not used.

Source: Gavrilyuk et al., "Actor and Action Video Segmentation from a Sentence", CVPR 2018; Botach et al., "End-to-End Referring
Video Object Segmentation with Multimodal Transformers" (MTTR), CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rvos_cache.datasets.base import make_expression
from rvos_cache.datasets.json_files import read_rows
from rvos_cache.datasets.listed import RowDataset, check_frames
from rvos_cache.datasets.matlab import read_array
from rvos_cache.datasets.samples import Sample
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, empty_rle, encode
from rvos_cache.media.frames import image_size, read_image
from rvos_cache.types import Expression, GroundTruth, Video, check_id

SPLIT = "test"
LIST = "jhmdb_sentences_samples_metadata.json"
FRAMES, MASKS, MASK_FILE, ARRAY = "Rename_Images", "puppet_mask", "puppet_mask.mat", "part_mask"
SENTENCE = "0"
"""The id of a video's only expression."""
MAX_FRAMES = 1000
"""Largest number of frames of a video that is read; the dataset's videos have 40."""


@dataclass
class _Entry:
    """The rows of one video. frames: the scored frames, from 1; count: number of frames that have a mask."""

    action: str
    count: int
    text: str
    frames: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class JhmdbSentences(RowDataset[_Entry]):
    """JHMDB-Sentences, which has the split "test" only. A video has one sentence, about its one annotated actor."""

    name = "jhmdb-sentences"
    protocol = "image"
    one_object = True
    upright = False

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError: if MTTR's list is missing or cannot be read."""
        super().__init__(root, split)
        self.file, self.duplicate_keys = self.root / LIST, []
        self.videos = {}
        for number, row in enumerate(read_rows(self.file), 1):
            _add_row(self.videos, row, f"{self.file}, row {number}")

    def _check_split(self) -> None:
        if self.split not in self.splits(self.root):
            hint = ", or copy the list from MTTR's repository (other frames are another test)"
            raise self._no_split(f"{self.root / LIST}: not found for split {self.split!r}", hint)

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return "test" if MTTR's list is there."""
        return [SPLIT] if (Path(root) / LIST).exists() else []

    def video(self, video_id: str) -> Video:
        """Return the frames that have a mask. Raises InputError: if the video is not listed or its first frame is missing."""
        names = _frame_names(self._valid_entry(video_id).count)
        paths = [self._folder(FRAMES, video_id) / f"{name}.png" for name in names]
        size = image_size(paths[0], self.upright)
        return Video(video_id, tuple(names), size, lambda t: read_image(paths[t], self.upright), files=tuple(paths))

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the only expression. Raises InputError: if its row cannot be read or its text is empty."""
        entry = self._valid_entry(video_id)
        return (make_expression(self.file, video_id, SENTENCE, entry.text, (video_id,)),)

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """Return the only id, also if the expression cannot be read. Raises InputError: if the video is not listed."""
        self._entry(video_id)
        return (SENTENCE,)

    def ground_truth(self, video_id: str) -> GroundTruth:
        """Return the actor, whose id is the video's, in the listed frames, which are `annotated`.

        Raises InputError: if the masks are damaged.
        """
        entry, video = self._valid_entry(video_id), self.video(video_id)
        masks = self._masks(video_id, video.size)
        row = [empty_rle(video.size)] * entry.count
        annotated = np.zeros(entry.count, bool)
        for number in entry.frames:
            row[number - 1] = encode(masks[..., number - 1])
            annotated[number - 1] = True
        return GroundTruth((video_id,), RleMasks.from_bytes([row], entry.count, video.size), annotated)

    def samples(self, video_id: str) -> tuple[Sample, ...]:
        """Return the listed frames. Raises InputError: if a row cannot be read."""
        frames = self._valid_entry(video_id).frames
        return tuple(Sample(video_id, SENTENCE, n - 1, f"v_{video_id}_f_{n}") for n in frames)

    def _check_video(self, video_id: str, entry: _Entry) -> Iterator[str]:
        if entry.faults:
            # The paths of such an entry are unknown.
            return
        try:
            self.expressions(video_id)
        except InputError as error:
            yield str(error)
        names, folder = _frame_names(entry.count), self._folder(FRAMES, video_id)
        size = yield from check_frames(folder, names, {name: [folder / f"{name}.png"] for name in names}, self.upright)
        try:
            self._masks(video_id, size)
        except InputError as error:
            yield str(error)

    def _masks(self, video_id: str, size: tuple[int, int] | None) -> NDArray[np.bool_]:
        """Return the masks of all frames, bool (H, W, T). size: (H, W) of the frames, None if unknown. Raises InputError."""
        path, count = self._folder(MASKS, video_id) / MASK_FILE, self._entry(video_id).count
        height, width = size or (4096, 4096)
        array = read_array(path, ARRAY, height * width * MAX_FRAMES)
        # MATLAB drops a last dimension of one.
        shape = (*array.shape, 1) if array.ndim == 2 else array.shape
        if len(shape) != 3 or (size is not None and shape[:2] != size):
            expected = "(height, width, frames)" if size is None else f"({height}, {width}, frames)"
            raise InputError(f"{path}: {ARRAY} is {array.shape}, expected {expected}; copy it again from the dataset")
        if shape[2] < count:
            raise InputError(f"{path}: {shape[2]} masks, {self.file.name} lists {count} frames; copy both again")
        return array.reshape(shape) != 0

    def _folder(self, kind: str, video_id: str) -> Path:
        return self.root / kind / self._entry(video_id).action / video_id


def _frame_names(count: int) -> list[str]:
    return [f"{n:05d}" for n in range(1, count + 1)]


def _add_row(videos: dict[str, _Entry], row: list[Any], location: str) -> None:
    """Add a row to its video's entry, or a message to the entry's faults. Raises InputError: if the row names no video."""
    if len(row) != 5 or not isinstance(row[0], str):
        raise InputError(f"{location}: expected [video, path of a frame, path of its masks, frames, text]; copy the file again")
    video_id, frame, masks, count, text = row
    entry = videos.setdefault(video_id, _Entry("", 0, ""))
    if not all(isinstance(v, str) for v in (frame, masks, text)) or type(count) is not int or not 0 < count <= MAX_FRAMES:
        entry.faults.append(f"{location}: expected two paths, 1 to {MAX_FRAMES} frames and a text; copy the file again")
        return
    # Only the last four parts are used: the folder before them belongs to MTTR's authors.
    frame_parts, mask_parts = frame.split("/")[-4:], masks.split("/")[-4:]
    action, stem = frame_parts[1] if len(frame_parts) == 4 else "", frame_parts[-1].removesuffix(".png")
    number = int(stem) if stem.isdecimal() else 0
    expected_parts = [FRAMES, action, video_id, f"{number:05d}.png"], [MASKS, action, video_id, MASK_FILE]
    if (frame_parts, mask_parts) != expected_parts:
        entry.faults.append(
            f"{location}: expected .../{FRAMES}/<action>/{video_id}/<frame>.png and "
            f".../{MASKS}/<action>/{video_id}/{MASK_FILE}, got {frame!r} and {masks!r}; copy the file again"
        )
        return
    try:
        check_id(action, f"{location}, action")
    except InputError as error:
        entry.faults.append(str(error))
        return
    if not entry.frames:
        entry.action, entry.count, entry.text = action, count, text
    if (entry.action, entry.count, entry.text) != (action, count, text):
        entry.faults.append(f"{location}: action, frames or text differ from the video's other rows; copy the file again")
    elif number in entry.frames or not 0 < number <= count:
        entry.faults.append(f"{location}: frame {number} of {count} is listed twice or out of range; copy the file again")
    else:
        entry.frames.append(number)
