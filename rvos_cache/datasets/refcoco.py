"""RefCOCO, RefCOCO+ and RefCOCOg, an image as a video of one frame, as ReferFormer converts them to COCO's format.

`train2014/<image>.jpg` and `<name>/instances_<name>_<split>.json`, or the latter in the root. In it "images" has one entry per
sentence ("id", "caption", "file_name", "height", "width") and "annotations" the object of each ("image_id": the sentence,
"original_id": COCO's annotation, "bbox": x, y, width, height, "segmentation": polygons or RLE). Splits: train, val, and
testA, testB (unc) or test (umd).

A video is an image with all its sentences. A split `<split>-pseudo<T>`, for example train-pseudo8, is the same images as
videos of T frames under a moving camera (see `pseudo`), for pre-training; `splits` does not list it.

Source: Yu et al., "Modeling Context in Referring Expressions", ECCV 2016; Mao et al., "Generation and Comprehension of
Unambiguous Object Descriptions", CVPR 2016; ReferFormer, tools/data/convert_refexp_to_coco.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from rvos_cache.datasets.base import make_expression
from rvos_cache.datasets.json_files import duplicate_key_message, read_json
from rvos_cache.datasets.listed import RowDataset
from rvos_cache.datasets.pseudo import affine_path, warp_image, warp_mask
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.media.frames import image_size, read_image
from rvos_cache.types import Expression, GroundTruth, Video, check_id

LIST, IMAGES = "instances_{}_{}.json", "train2014"
PSEUDO = re.compile(r"(.+)-pseudo([1-9][0-9]*)")
MAX_FRAMES = 200
"""Largest number of frames of a pseudo-video."""


@dataclass
class _Entry:
    """The entries of one image. size: (H, W); sentences: sentence id -> text; targets: sentence id -> object ids; objects: object
    id -> its segmentation as in the file."""

    file_name: str
    size: tuple[int, int]
    sentences: dict[str, str] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class RefCoco(RowDataset[_Entry]):
    """One split of RefCOCO. An expression's id is the sentence's "id" in the split's file."""

    name = "refcoco"
    protocol = "image"
    one_object = True
    upright = False
    known_splits: tuple[str, ...] = ("train", "val", "testA", "testB")
    """The published splits, in the order in which `splits` returns them."""

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError: if there is no such split, its file cannot be read, or an entry names no image."""
        super().__init__(root, split)
        pseudo = PSEUDO.fullmatch(split)
        self.frames = int(pseudo[2]) if pseudo else 1
        if pseudo and not 2 <= self.frames <= MAX_FRAMES:
            raise self._no_split(f"split {split!r}: expected 2 to {MAX_FRAMES} frames")
        file_name = LIST.format(self.name, pseudo[1] if pseudo else split)
        paths = _possible_paths(self.root, self.name, file_name)
        self.file = next((p for p in paths if p.exists()), self.root / self.name / file_name)
        if not self.file.exists():
            raise self._no_split(f"{self.file}: not found")
        self.duplicate_keys = []
        self.faults: list[str] = []
        content = read_json(self.file, self.duplicate_keys)
        images, annotations = (content.get(k) if isinstance(content, dict) else None for k in ("images", "annotations"))
        if not isinstance(images, list) or not isinstance(annotations, list):
            raise InputError(f'{self.file}: expected {{"images": [...], "annotations": [...]}}; convert the dataset again')
        self.videos = self._read(images, annotations)

    def _check_split(self) -> None:
        check_id(self.split, f"{self.root}, split")

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the splits whose file exists: the published ones in their order, then others."""
        before, after = LIST.format(cls.name, "\n").split("\n")
        patterns = _possible_paths(Path(root), cls.name, f"{before}*{after}")
        paths = [path for pattern in patterns for path in pattern.parent.glob(pattern.name)]
        names = {path.name.removeprefix(before).removesuffix(after) for path in paths}
        return [s for s in cls.known_splits if s in names] + sorted(names - set(cls.known_splits))

    def video(self, video_id: str) -> Video:
        """Return the image, or its pseudo-video. A video's id is the image's name without its suffix.

        Raises InputError: if the image is not listed, missing, or of another size than listed.
        """
        entry = self._valid_entry(video_id)
        path = self.root / IMAGES / entry.file_name
        size = image_size(path, self.upright)
        if size != entry.size:
            raise InputError(f"{path}: {size} pixels (height, width), {self.file.name} has {entry.size}; copy both again")
        names = tuple(f"{t:05d}" for t in range(self.frames))
        if self.frames == 1:
            return Video(video_id, names, size, lambda t: read_image(path, self.upright), files=(path,))
        image, motion = lru_cache(1)(lambda: read_image(path, self.upright)), affine_path(video_id, self.frames, size)
        return Video(video_id, names, size, lambda t: warp_image(image(), motion[t]), files=(path,))

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """Return the expressions in file order. Raises InputError: if an entry cannot be read or a text is empty."""
        return tuple(self._expression(video_id, key) for key in self._valid_entry(video_id).sentences)

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """Return the ids in file order, also of expressions that cannot be read. Raises InputError: if not listed."""
        return tuple(self._entry(video_id).sentences)

    def ground_truth(self, video_id: str) -> GroundTruth:
        """Return the targets of the image's sentences, each once, by COCO's annotation id where the file has it.

        Raises InputError: if a segmentation is damaged, of another size, or without a pixel.
        """
        entry = self._valid_entry(video_id)
        rows = [[self._mask(video_id, entry, object_id)] for object_id in entry.objects]
        masks = RleMasks.from_bytes(rows, 1, entry.size)
        if self.frames > 1:
            motion = affine_path(video_id, self.frames, entry.size)
            warped = [[warp_mask(masks.decode(k, 0), matrix) for matrix in motion] for k in range(len(rows))]
            masks = RleMasks.from_bytes(warped, self.frames, entry.size)
        return GroundTruth(tuple(entry.objects), masks, np.ones(self.frames, bool))

    def check(self) -> Iterator[str]:
        """Yield every fault, one line each, and the sentences that are left out because their box has no area."""
        for key in self.duplicate_keys:
            yield duplicate_key_message(self.file, key)
        yield from self.faults
        yield from super().check()

    def _check_video(self, video_id: str, entry: _Entry) -> Iterator[str]:
        for key in entry.sentences:
            try:
                self._expression(video_id, key)
            except InputError as error:
                yield str(error)
        if entry.faults:
            # Its file name or its size may be faulty.
            return
        try:
            self.video(video_id)
            read_image(self.root / IMAGES / entry.file_name, self.upright)
        except InputError as error:
            yield str(error)
        for object_id in entry.objects:
            try:
                self._mask(video_id, entry, object_id)
            except InputError as error:
                yield str(error)

    def _expression(self, video_id: str, key: str) -> Expression:
        entry = self._entry(video_id)
        return make_expression(self.file, video_id, key, entry.sentences[key], tuple(entry.targets.get(key, ())))

    def _mask(self, video_id: str, entry: _Entry, object_id: str) -> bytes:
        location = f"{self.file}, video {video_id}, object {object_id}"
        mask = segmentation_bytes(entry.objects[object_id], entry.size, location)
        if not coco.area({"size": list(entry.size), "counts": mask}):
            raise InputError(f"{location}: its mask has no pixel; convert the dataset again or take its sentences off the list")
        return mask

    def _read(self, images: list[Any], annotations: list[Any]) -> dict[str, _Entry]:
        """Return the entries by image. An image whose sentences are all left out has none."""
        by_sentence: dict[int, list[dict[str, Any]]] = {}
        for number, annotation in enumerate(annotations, 1):
            sentence = annotation.get("image_id") if isinstance(annotation, dict) else None
            if type(sentence) is not int:
                self.faults.append(f'{self.file}, annotation {number}: expected {{"image_id": number, ...}}; convert it again')
            else:
                by_sentence.setdefault(sentence, []).append(annotation)
        videos: dict[str, _Entry] = {}
        entries: dict[int, _Entry] = {}
        owners: dict[str, _Entry] = {}
        for number, image in enumerate(images, 1):
            location = f"{self.file}, image {number}"
            entry, sentence, text = _read_image_entry(videos, image, location)
            if sentence in entries:
                problem = f"the id {sentence} occurs twice, so which sentence its annotation belongs to is unknown"
                fault = f"{location}: {problem}; convert it again"
                entry.faults.append(fault)
                entries[sentence].faults.append(fault)
            elif sentence is not None and text is not None:
                entries[sentence] = entry
                self._add_sentence(entry, sentence, text, by_sentence.get(sentence, []), owners)
        for sentence in sorted(by_sentence.keys() - entries.keys()):
            self.faults.append(f"{self.file}: an annotation is of sentence {sentence}, which does not exist; convert it again")
        return {video_id: entry for video_id, entry in videos.items() if entry.sentences or entry.faults}

    def _add_sentence(
        self, entry: _Entry, sentence: int, text: str, annotations: list[dict[str, Any]], owners: dict[str, _Entry]
    ) -> None:
        """Add a sentence and its objects to an entry. owners: object id -> the image that has it."""
        location = f"{self.file}, sentence {sentence}"
        if not annotations:
            # Every sentence has a target, so this one's is missing.
            entry.faults.append(f"{location}: no annotation has this image_id; convert the dataset again")
        targets: list[str] = []
        left_out = 0
        for annotation in annotations:
            try:
                if not _has_area(annotation.get("bbox"), entry.size, location):
                    self.faults.append(f"{location}: its box {annotation['bbox']} has no area in the image, so it is left out")
                    left_out += 1
                    continue
            except InputError as error:
                entry.faults.append(str(error))
                continue
            segmentation = annotation.get("segmentation")
            object_id = _object_id(entry, annotation)
            if owners.setdefault(object_id, entry) is not entry:
                entry.faults.append(f"{location}: its object {object_id} is in another image too; convert the dataset again")
            if entry.objects.setdefault(object_id, segmentation) != segmentation:
                problem = f"its object {object_id} has another mask in an earlier annotation"
                entry.faults.append(f"{location}: {problem}; convert the dataset again")
            targets.append(object_id)
        if not annotations or left_out < len(annotations):
            entry.sentences[str(sentence)] = text
            entry.targets[str(sentence)] = list(dict.fromkeys(targets))


class RefCocoPlus(RefCoco):
    """One split of RefCOCO+."""

    name = "refcoco+"


class RefCocoG(RefCoco):
    """One split of RefCOCOg."""

    name = "refcocog"
    known_splits = ("train", "val", "test")


def segmentation_bytes(segmentation: object, size: tuple[int, int], location: str) -> bytes:
    """Return the run-length bytes of COCO's "segmentation": polygons [[x, y, x, y, ...], ...] in pixels, or RLE.

    size: (H, W). Raises InputError: if it is neither, or does not fit the size. A missing mask is a fault, not an empty mask.
    """
    if isinstance(segmentation, dict):
        return from_coco(segmentation, size, location)
    if not isinstance(segmentation, list) or not segmentation or not all(_is_polygon(p, size) for p in segmentation):
        expected = f"expected polygons [[x, y, x, y, x, y, ...], ...] in {size[0]}x{size[1]} pixels or COCO RLE"
        raise InputError(f"{location}: {expected}, got {segmentation!r:.60}; convert the dataset again")
    return bytes(coco.merge(coco.frPyObjects(segmentation, *size))["counts"])


def _is_polygon(points: object, size: tuple[int, int]) -> bool:
    """Return whether `points` are three points or more, none far outside the image: pycocotools allocates all of their edges."""
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    sides = (size[1], size[0])
    return all(type(v) in (int, float) and -sides[i % 2] <= v <= 2 * sides[i % 2] for i, v in enumerate(points))


def _possible_paths(root: Path, name: str, file_name: str) -> tuple[Path, Path]:
    return root / name / file_name, root / file_name


def _read_image_entry(videos: dict[str, _Entry], image: object, location: str) -> tuple[_Entry, int | None, str | None]:
    """Return the entry of a sentence's image, the sentence's id and its text; ids are None if the entry gets a fault here.

    Raises InputError: if it names no image.
    """
    file_name = image.get("file_name") if isinstance(image, dict) else None
    if not isinstance(image, dict) or not isinstance(file_name, str):
        raise InputError(f'{location}: expected {{"file_name": ..., "id": ..., "caption": ...}}; convert the dataset again')
    size, sentence, text = (image.get("height"), image.get("width")), image.get("id"), image.get("caption")
    entry = videos.setdefault(file_name.rpartition(".")[0] or file_name, _Entry(file_name, size))  # type: ignore[arg-type]
    try:
        check_id(file_name, f"{location}, file_name")
    except InputError as error:
        entry.faults.append(str(error))
        return entry, None, None
    if not all(type(side) is int and side > 0 for side in size):
        entry.faults.append(f"{location}: height and width are {size}, expected pixels; convert the dataset again")
    elif (entry.file_name, entry.size) != (file_name, size):
        earlier = f"an earlier entry has {entry.file_name} of {entry.size}"
        entry.faults.append(f"{location}: {file_name} of {size}, {earlier}; convert it again")
    elif type(sentence) is not int or not isinstance(text, str):
        entry.faults.append(f'{location}: expected a number as "id" and a text as "caption"; convert the dataset again')
    else:
        return entry, sentence, text
    return entry, None, None


def _has_area(box: object, size: tuple[int, int], location: str) -> bool:
    """Return whether a box [x, y, width, height] has area in an image of `size` (H, W). Raises InputError: if it is no box."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) and abs(v) < 1e9 for v in box):
        raise InputError(f'{location}: expected "bbox" [x, y, width, height], got {box!r:.60}; convert the dataset again')
    x, y, width, height = box
    return min(x + width, size[1]) > max(x, 0) and min(y + height, size[0]) > max(y, 0)


def _object_id(entry: _Entry, annotation: dict[str, Any]) -> str:
    """Return COCO's annotation id, or, if the file has none, "<image>-<n>": the same for equal segmentations of an image."""
    original, segmentation = annotation.get("original_id"), annotation.get("segmentation")
    if type(original) is int:
        return str(original)
    equal = (object_id for object_id, other in entry.objects.items() if other == segmentation)
    return next(equal, f"{Path(entry.file_name).stem}-{len(entry.objects) + 1}")
