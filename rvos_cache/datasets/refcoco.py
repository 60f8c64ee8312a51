"""RefCOCO, RefCOCO+ and RefCOCOg, an image as a video of one frame, as ReferFormer converts them to COCO's format.

`train2014/<image>.jpg` and `<name>/instances_<name>_<split>.json`, or the latter in the root. In it "images" has one entry per
sentence ("id", "caption", "file_name", "height", "width") and "annotations" the object of each ("image_id": the sentence,
"original_id": COCO's annotation, "bbox": x, y, width, height, "segmentation": polygons or RLE). Splits: train, val, and
testA, testB (unc) or test (umd).

A video is an image with all its sentences. A split `<split>-pseudo<T>`, for example train-pseudo8, is the same images as
videos of T frames under a moving camera (see `pseudo`), for pre-training; `splits` leaves it out.
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

from rvos_cache.datasets.meta_expressions import check_once, read_json, twice
from rvos_cache.datasets.pseudo import affine_path, warp_image, warp_mask
from rvos_cache.datasets.samples import ListedSplit
from rvos_cache.errors import InputError
from rvos_cache.frames import image_size, read_image
from rvos_cache.masks import RleMasks, from_coco
from rvos_cache.types import Expression, GroundTruth, Video, check_id

LIST, IMAGES = "instances_{}_{}.json", "train2014"
PSEUDO = re.compile(r"(.+)-pseudo([1-9][0-9]*)")
LONGEST = 200
"""Frames of the longest pseudo-video."""


@dataclass
class _Entry:
    """What the file says of one image. size: (H, W); said: sentence -> text; targets: sentence -> objects; objects: object ->
    its segmentation as in the file."""

    file_name: str
    size: tuple[int, int]
    said: dict[str, str] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class RefCoco(ListedSplit[_Entry]):
    """One split of RefCOCO. An expression's id is the sentence's "id" in the split's file."""

    name = "refcoco"
    one_object = True
    known: tuple[str, ...] = ("train", "val", "testA", "testB")
    has_ground_truth = True

    def __init__(self, root: Path, split: str) -> None:
        """Raises InputError, also where an entry of the list names no image."""
        self.root, self.split = Path(root), split
        check_id(split, f"{self.root}, split")
        pseudo = PSEUDO.fullmatch(split)
        self.frames = int(pseudo[2]) if pseudo else 1
        if pseudo and not 2 <= self.frames <= LONGEST:
            raise InputError(f"split {split!r}: wanted 2 to {LONGEST} frames; splits: {', '.join(self.splits(self.root))}")
        listed = LIST.format(self.name, pseudo[1] if pseudo else split)
        self.file = next((p for p in _places(self.root, self.name, listed) if p.exists()), self.root / self.name / listed)
        if not self.file.exists():
            there = ", ".join(self.splits(self.root)) or "none"
            raise InputError(f"{self.file}: not found; splits of {self.root}: {there}; give another --root or --split")
        self.repeated: list[str] = []
        self.faults: list[str] = []
        content = read_json(self.file, self.repeated)
        images, annotations = (content.get(k) if isinstance(content, dict) else None for k in ("images", "annotations"))
        if not isinstance(images, list) or not isinstance(annotations, list):
            raise InputError(f'{self.file}: wanted {{"images": [...], "annotations": [...]}}; convert the dataset again')
        self.videos = self._read(images, annotations)

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """The splits whose list is there: the published ones in that order, then others."""
        before, after = LIST.format(cls.name, "\n").split("\n")
        paths = [p for pattern in _places(Path(root), cls.name, f"{before}*{after}") for p in pattern.parent.glob(pattern.name)]
        found = {p.name.removeprefix(before).removesuffix(after) for p in paths}
        return [s for s in cls.known if s in found] + sorted(found - set(cls.known))

    def video_ids(self) -> tuple[str, ...]:
        """The images, by their name without suffix. Raises InputError when a key of the list stands twice."""
        check_once(self.file, self.repeated)
        return super().video_ids()

    def video(self, video_id: str) -> Video:
        """The image, or its pseudo-video. Raises InputError: not listed, missing, or of another size than the file says."""
        entry = self._sound(video_id)
        path = self.root / IMAGES / entry.file_name
        found = image_size(path)
        if found != entry.size:
            raise InputError(f"{path}: {found} pixels (height, width), {self.file.name} says {entry.size}; copy both again")
        names = tuple(f"{t:05d}" for t in range(self.frames))
        if self.frames == 1:
            return Video(video_id, names, found, lambda t: read_image(path))
        whole, motion = lru_cache(1)(lambda: read_image(path)), affine_path(video_id, self.frames, found)
        return Video(video_id, names, found, lambda t: warp_image(whole(), motion[t]))

    def expressions(self, video_id: str) -> tuple[Expression, ...]:
        """In file order. Raises InputError for an entry that cannot be read or an empty text."""
        return tuple(self._expression(video_id, key) for key in self._sound(video_id).said)

    def expression_ids(self, video_id: str) -> tuple[str, ...]:
        """The ids in file order, also those of expressions that cannot be read. Raises InputError."""
        return tuple(self._entry(video_id).said)

    def ground_truth(self, video_id: str) -> GroundTruth:
        """The objects that sentences refer to, each once, by COCO's annotation id where the file has it.

        Raises InputError: a segmentation is damaged, of another size, or without a pixel.
        """
        entry = self._sound(video_id)
        rows = [[self._mask(video_id, entry, object_id)] for object_id in entry.objects]
        masks = RleMasks.from_bytes(rows, 1, entry.size)
        if self.frames > 1:
            motion = affine_path(video_id, self.frames, entry.size)
            moved = [[warp_mask(masks.decode(k, 0), matrix) for matrix in motion] for k in range(len(rows))]
            masks = RleMasks.from_bytes(moved, self.frames, entry.size)
        return GroundTruth(tuple(entry.objects), masks, np.ones(self.frames, bool))

    def check(self) -> Iterator[str]:
        """Every fault, one line each; sentences that are left out because their box has no area are among them."""
        for key in self.repeated:
            yield twice(self.file, key)
        yield from self.faults
        yield from super().check()

    def _check_video(self, video_id: str, entry: _Entry) -> Iterator[str]:
        for key in entry.said:
            try:
                self._expression(video_id, key)
            except InputError as error:
                yield str(error)
        if entry.faults:
            # Its file or size may be among them.
            return
        try:
            self.video(video_id)
            read_image(self.root / IMAGES / entry.file_name)
        except InputError as error:
            yield str(error)
        for object_id in entry.objects:
            try:
                self._mask(video_id, entry, object_id)
            except InputError as error:
                yield str(error)

    def _expression(self, video_id: str, key: str) -> Expression:
        entry = self._entry(video_id)
        try:
            return Expression(video_id, key, entry.said[key], tuple(entry.targets.get(key, ())))
        except InputError as error:
            raise InputError(f"{self.file}, {error}") from error

    def _mask(self, video_id: str, entry: _Entry, object_id: str) -> bytes:
        where = f"{self.file}, video {video_id}, object {object_id}"
        raw = segmentation_bytes(entry.objects[object_id], entry.size, where)
        if not coco.area({"size": list(entry.size), "counts": raw}):
            raise InputError(f"{where}: its mask has no pixel; convert the dataset again or take its sentences off the list")
        return raw

    def _read(self, images: list[Any], annotations: list[Any]) -> dict[str, _Entry]:
        """The entries by image. Images whose sentences are all left out are none."""
        marked: dict[int, list[dict[str, Any]]] = {}
        for number, annotation in enumerate(annotations, 1):
            sentence = annotation.get("image_id") if isinstance(annotation, dict) else None
            if type(sentence) is not int:
                self.faults.append(f'{self.file}, annotation {number}: wanted {{"image_id": number, ...}}; convert it again')
            else:
                marked.setdefault(sentence, []).append(annotation)
        videos: dict[str, _Entry] = {}
        of: dict[int, _Entry] = {}
        owners: dict[str, _Entry] = {}
        for number, image in enumerate(images, 1):
            where = f"{self.file}, image {number}"
            entry, sentence, text = _listed(videos, image, where)
            if sentence in of:
                twofold = (
                    f"{where}: the id {sentence} stands twice; which sentence its annotation means is lost: convert it again"
                )
                entry.faults.append(twofold)
                of[sentence].faults.append(twofold)
            elif sentence is not None and text is not None:
                of[sentence] = entry
                self._join(entry, sentence, text, marked.get(sentence, []), owners)
        for sentence in sorted(marked.keys() - of.keys()):
            self.faults.append(f"{self.file}: an annotation is of sentence {sentence}, which is not there; convert it again")
        return {video_id: entry for video_id, entry in videos.items() if entry.said or entry.faults}

    def _join(
        self, entry: _Entry, sentence: int, text: str, annotations: list[dict[str, Any]], owners: dict[str, _Entry]
    ) -> None:
        """Give a sentence its objects. owners: object -> the image that has it."""
        where = f"{self.file}, sentence {sentence}"
        if not annotations:
            # Not a sentence that nothing matches: its answer is lost.
            entry.faults.append(f"{where}: no annotation has this image_id; convert the dataset again")
        targets: list[str] = []
        left_out = 0
        for annotation in annotations:
            try:
                if not _has_area(annotation.get("bbox"), entry.size, where):
                    self.faults.append(f"{where}: its box {annotation['bbox']} has no area in the image, so it is left out")
                    left_out += 1
                    continue
            except InputError as error:
                entry.faults.append(str(error))
                continue
            segmentation = annotation.get("segmentation")
            object_id = _object_id(entry, annotation)
            if owners.setdefault(object_id, entry) is not entry:
                entry.faults.append(f"{where}: its object {object_id} is in another image too; convert the dataset again")
            if entry.objects.setdefault(object_id, segmentation) != segmentation:
                entry.faults.append(f"{where}: its object {object_id} has another mask above; convert the dataset again")
            targets.append(object_id)
        if not annotations or left_out < len(annotations):
            entry.said[str(sentence)] = text
            entry.targets[str(sentence)] = list(dict.fromkeys(targets))


class RefCocoPlus(RefCoco):
    """One split of RefCOCO+."""

    name = "refcoco+"


class RefCocoG(RefCoco):
    """One split of RefCOCOg."""

    name = "refcocog"
    known = ("train", "val", "test")


def segmentation_bytes(segmentation: object, size: tuple[int, int], where: str) -> bytes:
    """The run-length bytes of COCO's "segmentation": polygons [[x, y, x, y, ...], ...] in pixels, or RLE; size: (H, W).

    Raises InputError: null, a text, or what does not fit the size. An absent mask is a fault, not an empty one.
    """
    if isinstance(segmentation, dict):
        return from_coco(segmentation, size, where)
    if not isinstance(segmentation, list) or not segmentation or not all(_is_polygon(p, size) for p in segmentation):
        wanted = f"wanted polygons [[x, y, x, y, x, y, ...], ...] in {size[0]}x{size[1]} pixels or COCO RLE"
        raise InputError(f"{where}: {wanted}, came {segmentation!r:.60}; convert the dataset again")
    return bytes(coco.merge(coco.frPyObjects(segmentation, *size))["counts"])


def _is_polygon(points: object, size: tuple[int, int]) -> bool:
    """Three points or more. Far outside the image they are refused: pycocotools takes memory for all of their edges."""
    if not isinstance(points, list) or len(points) < 6 or len(points) % 2:
        return False
    most = (size[1], size[0])
    return all(type(v) in (int, float) and -most[i % 2] <= v <= 2 * most[i % 2] for i, v in enumerate(points))


def _places(root: Path, name: str, listed: str) -> tuple[Path, Path]:
    return root / name / listed, root / listed


def _listed(videos: dict[str, _Entry], image: object, where: str) -> tuple[_Entry, int | None, str | None]:
    """The entry of a sentence's image, its id and text; what is wrong goes to the entry. Raises InputError: it names no image."""
    file_name = image.get("file_name") if isinstance(image, dict) else None
    if not isinstance(image, dict) or not isinstance(file_name, str):
        raise InputError(f'{where}: wanted {{"file_name": ..., "id": ..., "caption": ...}}; convert the dataset again')
    size, sentence, text = (image.get("height"), image.get("width")), image.get("id"), image.get("caption")
    entry = videos.setdefault(file_name.rpartition(".")[0] or file_name, _Entry(file_name, size))  # type: ignore[arg-type]
    try:
        check_id(file_name, f"{where}, file_name")
    except InputError as error:
        entry.faults.append(str(error))
        return entry, None, None
    if not all(type(side) is int and side > 0 for side in size):
        entry.faults.append(f"{where}: height and width are {size}, wanted pixels; convert the dataset again")
    elif (entry.file_name, entry.size) != (file_name, size):
        entry.faults.append(f"{where}: {file_name} of {size} is {entry.file_name} of {entry.size} above; convert it again")
    elif type(sentence) is not int or not isinstance(text, str):
        entry.faults.append(f'{where}: wanted a number as "id" and a text as "caption"; convert the dataset again')
    else:
        return entry, sentence, text
    return entry, None, None


def _has_area(box: object, size: tuple[int, int], where: str) -> bool:
    """Whether a box [x, y, width, height] has area inside the image of `size` (H, W). Raises InputError when it is no box."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) and abs(v) < 1e9 for v in box):
        raise InputError(f'{where}: wanted "bbox" [x, y, width, height], came {box!r:.60}; convert the dataset again')
    x, y, width, height = box
    return min(x + width, size[1]) > max(x, 0) and min(y + height, size[0]) > max(y, 0)


def _object_id(entry: _Entry, annotation: dict[str, Any]) -> str:
    """COCO's annotation id; where the file has none "<image>-<n>", the same for equal segmentations of an image."""
    original, segmentation = annotation.get("original_id"), annotation.get("segmentation")
    if type(original) is int:
        return str(original)
    known = (object_id for object_id, held in entry.objects.items() if held == segmentation)
    return next(known, f"{Path(entry.file_name).stem}-{len(entry.objects) + 1}")
