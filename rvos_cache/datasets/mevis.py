"""MeViS: `<root>/<split>/JPEGImages/<video>/<frame>.jpg`, `meta_expressions.json`, `mask_dict.json`.

meta_expressions.json: {"videos": {video: {"expressions": {id: {"exp", "anno_id": [...]}}, "frames": [stems]}}};
mask_dict.json: {anno_id: [COCO RLE or null per frame of its video]}. The split `valid` has neither anno_id nor masks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rvos_cache.errors import InputError
from rvos_cache.frames import folder_video, frame_path, read_image
from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.types import Expression, GroundTruth, Video, check_id

SPLITS = ("train", "valid_u", "valid")
OPEN = ("train", "valid_u")
EXPRESSIONS, MASKS, FRAMES = "meta_expressions.json", "mask_dict.json", "JPEGImages"


class Mevis:
    """One split of MeViS, or of anything in its layout."""

    name = "mevis"

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.split = Path(root), split
        self.folder = self.root / split
        self.file = self.folder / EXPRESSIONS
        if not self.file.exists():
            there = ", ".join(self.splits(self.root)) or "none"
            raise InputError(f"{self.file}: not found; splits of {self.root}: {there}; give another --root or --split")
        self.repeated: list[str] = []
        self.repeated_masks: list[str] = []
        content = _read_json(self.file, self.repeated)
        videos = content.get("videos") if isinstance(content, dict) else None
        if not isinstance(videos, dict):
            raise InputError(f'{self.file}: wanted {{"videos": {{...}}}}; copy the file again from the dataset')
        self.videos: dict[str, Any] = videos

    @staticmethod
    def splits(root: Path) -> list[str]:
        """The splits found under `root`: MeViS's own in its order, then any other folder with expressions."""
        found = {p.parent.name for p in Path(root).glob(f"*/{EXPRESSIONS}")}
        return [s for s in SPLITS if s in found] + sorted(found - set(SPLITS))

    @property
    def has_answers(self) -> bool:
        """Whether the split shows its answers: MeViS's open splits do (missing masks are a fault there), others by their file."""
        return self.split in OPEN or (self.folder / MASKS).exists()

    def video_ids(self) -> tuple[str, ...]:
        """The videos in file order."""
        return tuple(self.videos)

    def video(self, video_id: str) -> Video:
        """Raises InputError when it is not listed, its id cannot name a folder, or its frames are missing."""
        entry = self._entry(video_id)
        names = entry.get("frames")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise InputError(f'{self.file}, video {video_id}: "frames" must be a list of names; copy the file again')
        for name in names:
            check_id(name, f"{self.file}, video {video_id}, frame")
        return folder_video(self.folder / FRAMES / video_id, video_id, names)

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """In file order. Raises InputError for an empty text, a bad id, or an id that is not annotated."""
        where = f"{self.file}, video {video_id}"
        listed = self._entry(video_id).get("expressions")
        if not isinstance(listed, dict):
            raise InputError(f'{where}: "expressions" must be an object of id: {{"exp": ...}}; copy the file again')
        return tuple(self._expression(video_id, key, entry, where) for key, entry in listed.items())

    def _expression(self, video_id: str, key: str, entry: Any, where: str) -> Expression:
        if not isinstance(entry, dict) or not isinstance(entry.get("exp"), str):
            raise InputError(f'{where}, expression {key}: wanted {{"exp": text}}; copy the file again')
        if not entry["exp"].strip():
            raise InputError(f"{where}, expression {key}: the text is empty; write the sentence or remove the expression")
        targets = None
        if self.has_answers:
            ids = entry.get("anno_id")
            if not isinstance(ids, list):
                raise InputError(f'{where}, expression {key}: "anno_id" must be a list of ids; copy the file again')
            targets = tuple(dict.fromkeys(str(i) for i in ids))
            lost = [i for i in targets if i not in self.masks]
            if lost:
                raise InputError(f"{where}, expression {key}: object {lost[0]} is not in {self.folder / MASKS}; copy both again")
        return Expression(video_id, key, entry["exp"], targets)

    def ground_truth(self, video_id: str) -> GroundTruth | None:
        """The objects that the video's expressions name, by anno_id. None when the split has no masks. Raises InputError."""
        if not self.has_answers:
            return None
        video = self.video(video_id)
        named = [target for e in self.expressions(video_id) for target in e.targets or ()]
        ids = tuple(dict.fromkeys(named))
        rows = []
        for object_id in ids:
            where = f"{self.folder / MASKS}, object {object_id} of video {video_id}"
            listed = self.masks[object_id]
            if not isinstance(listed, list) or len(listed) != len(video):
                found = len(listed) if isinstance(listed, list) else type(listed).__name__
                raise InputError(f"{where}: {found} masks for {len(video)} frames; copy the file again")
            rows.append([from_coco(rle, video.size, f"{where}, frame {n}") for rle, n in zip(listed, video.frame_names)])
        return GroundTruth(ids, RleMasks.from_bytes(rows, len(video), video.size), np.ones(len(video), bool))

    def kind(self, video_id: str, expression_id: str) -> str | None:
        """What the file says the sentence needs ("motion", "static", ...), where it says so."""
        kind = self._entry(video_id)["expressions"][expression_id].get("kind")
        return kind if isinstance(kind, str) else None

    def check(self) -> Iterator[str]:
        """Every fault, one line each."""
        if self.has_answers:
            try:
                _ = self.masks
            except InputError as error:
                yield str(error)
                return
        for file, key in [(self.file, key) for key in self.repeated] + [
            (self.folder / MASKS, key) for key in self.repeated_masks
        ]:
            yield f"{file}: the key {key!r} stands twice in one object; the first is lost: give them different ids"
        for video_id in self.videos:
            yield from self._check_video(video_id)

    def _check_video(self, video_id: str) -> Iterator[str]:
        try:
            video = self.video(video_id)
        except InputError as error:
            yield str(error)
            return
        folder = self.folder / FRAMES / video_id
        for t, name in enumerate(video.frame_names):
            try:
                frame = read_image(frame_path(folder, name))
                if frame.shape[:2] != video.size:
                    yield f"{frame_path(folder, name)}: {frame.shape[:2]} pixels, the first frame has {video.size}"
            except InputError as error:
                yield str(error)
                if t == 0:
                    return
        listed = self._entry(video_id).get("expressions")
        faults = 0
        for key, entry in listed.items() if isinstance(listed, dict) else ():
            try:
                self._expression(video_id, key, entry, f"{self.file}, video {video_id}")
            except InputError as error:
                faults += 1
                yield str(error)
        if faults:
            return
        try:
            self.ground_truth(video_id) if self.has_answers else self.expressions(video_id)
        except InputError as error:
            yield str(error)

    @cached_property
    def masks(self) -> dict[str, Any]:
        """mask_dict.json. Raises InputError."""
        path = self.folder / MASKS
        content = _read_json(path, self.repeated_masks)
        if not isinstance(content, dict):
            raise InputError(f"{path}: wanted an object of anno_id: masks; copy the file again")
        return content

    def _entry(self, video_id: str) -> dict[str, Any]:
        check_id(video_id, f"{self.file}, video")
        entry = self.videos.get(video_id)
        if not isinstance(entry, dict):
            raise InputError(f"{self.file}: no video {video_id!r} in this split; rvos-cache check lists them")
        return entry


def _read_json(path: Path, repeated: list[str]) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            keys = [key for key, _ in items]
            repeated.extend(sorted({key for key in keys if keys.count(key) > 1}))
        return found

    try:
        return json.loads(path.read_text("utf-8"), object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg}); copy the file again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the file again") from error
