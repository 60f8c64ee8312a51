"""RefCOCO, RefCOCO+ and RefCOCOg: images as videos, pseudo-videos, and one error line for every fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_videos import call
from PIL import Image
from pycocotools import mask as coco
from youtube_files import cut

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.pseudo import affine_path, warp_image, warp_mask
from rvos_cache.datasets.refcoco import RefCoco, segmentation_bytes
from rvos_cache.errors import InputError

SIZE = (40, 60)
NAME = "COCO_train2014_{:012d}"
ONE, TWO = NAME.format(1), NAME.format(2)
BOXES = {11: (4, 6, 20, 12), 12: (30, 20, 16, 14), 21: (10, 5, 24, 30)}
"""Object -> x, y, width, height; 11 and 12 are in the first image."""
EXPRESSIONS = [(1, 11, "the left box"), (1, 11, "a flat box"), (2, 21, "the box"), (1, 12, "right box"), (2, 21, "Box")]
"""Image, object, sentence; the sentences of an object are not consecutive."""


def pixels(number: int) -> np.ndarray:
    x, y, width, height = BOXES[number]
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def segmentation(number: int) -> Any:
    """Object 12 is crowd, as RLE of counts; the others are polygons."""
    if number == 12:
        flat = pixels(12).ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        return {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()}
    x, y, width, height = BOXES[number]
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def write_refcoco(root: Path, name: str = "refcoco", splits: tuple[str, ...] = ("train", "val")) -> None:
    """As ReferFormer's tools/data/convert_refexp_to_coco.py writes it: a picture per sentence."""
    (root / "train2014").mkdir(parents=True)
    (root / name).mkdir()
    for image in (1, 2):
        frame = np.full((*SIZE, 3), 40, np.uint8)
        for number in BOXES:
            if number // 10 == image:
                frame[pixels(number)] = (250, 20 * (number % 10), 120 * image)
        Image.fromarray(frame).save(root / "train2014" / f"{NAME.format(image)}.jpg", quality=95)
    images, annotations = [], []
    for n, (image, number, text) in enumerate(EXPRESSIONS, 1):
        of = {"file_name": f"{NAME.format(image)}.jpg", "height": SIZE[0], "width": SIZE[1], "original_id": image}
        images.append(of | {"id": n, "caption": text, "dataset_name": name})
        box = {"bbox": list(BOXES[number]), "segmentation": segmentation(number), "area": 1.0, "iscrowd": 0, "category_id": 1}
        annotations.append(box | {"image_id": n, "id": n, "original_id": number})
    for split in splits:
        content = {"info": "", "licenses": "", "categories": [], "images": images, "annotations": annotations}
        (root / name / f"instances_{name}_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("refcoco")
    write_refcoco(root)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "coco"))


def test_an_image_is_a_video_with_all_its_sentences(root: Path) -> None:
    data = open_dataset("refcoco", root, "train")
    assert RefCoco.splits(root) == ["train", "val"]
    assert data.video_ids() == (ONE, TWO) and data.has_ground_truth
    assert [(e.expression_id, e.text, e.targets) for e in data.expressions(ONE)] == [
        ("1", "the left box", ("11",)),
        ("2", "a flat box", ("11",)),
        ("4", "right box", ("12",)),
    ]
    assert [(e.expression_id, e.targets) for e in data.expressions(TWO)] == [("3", ("21",)), ("5", ("21",))]
    video, truth = data.video(ONE), data.ground_truth(ONE)
    assert (video.frame_names, video.size, video.read(0).shape) == (("00000",), SIZE, (*SIZE, 3))
    assert truth is not None and truth.object_ids == ("11", "12") and truth.annotated.tolist() == [True]
    for k, number in enumerate((11, 12)):
        assert np.array_equal(truth.masks.decode(k, 0), pixels(number))
    assert list(data.check()) == []


@pytest.mark.parametrize(
    ("name", "splits"),
    [("refcoco", ("train", "val", "testA", "testB")), ("refcoco+", ("testB", "train")), ("refcocog", ("train", "val", "test"))],
)
def test_each_dataset_has_its_splits(tmp_path: Path, name: str, splits: tuple[str, ...]) -> None:
    write_refcoco(tmp_path, name, splits)
    order = [s for s in ("train", "val", "testA", "testB", "test") if s in splits]
    for split in splits:
        data = open_dataset(name, tmp_path, split)
        assert type(data).splits(tmp_path) == order and (data.name, data.split) == (name, split)
        assert len(data.video_ids()) == 2
    for other in {"refcoco", "refcoco+", "refcocog"} - {name}:
        with pytest.raises(InputError, match=rf"instances_{other[:7]}.*_train.json: not found; splits of .*: none"):
            open_dataset(other, tmp_path, "train")


def test_lists_in_the_root(root: Path) -> None:
    for path in (root / "refcoco").iterdir():
        path.rename(root / path.name)
    assert RefCoco.splits(root) == ["train", "val"]
    assert list(RefCoco(root, "val").check()) == []


def test_without_ids_equal_masks_are_one_object(root: Path) -> None:
    listed(root, lambda c: [a.pop("original_id") for a in c["annotations"]])
    data = RefCoco(root, "train")
    assert [e.targets for e in data.expressions(ONE)] == [(f"{ONE}-1",), (f"{ONE}-1",), (f"{ONE}-2",)]
    truth = data.ground_truth(ONE)
    assert truth.object_ids == (f"{ONE}-1", f"{ONE}-2")
    assert np.array_equal(truth.masks.decode(1, 0), pixels(12))
    assert list(data.check()) == []


@pytest.mark.parametrize("box", [[4, 6, 0, 12], [4, 6, 20, 0], [4, 6, -3, 12], [60, 6, 5, 5], [-9, 6, 9, 5]])
def test_a_sentence_whose_box_has_no_area_is_left_out(root: Path, box: list[int]) -> None:
    """As in ReferFormer's training: a sentence without a box is not a sentence without a target."""
    listed(root, lambda c: c["annotations"][1].update(bbox=box))
    data = RefCoco(root, "train")
    assert [e.expression_id for e in data.expressions(ONE)] == ["1", "4"]
    (line,) = data.check()
    assert "sentence 2: its box" in line and str(data.file) in line
    listed(root, lambda c: [c["annotations"][n].update(bbox=box) for n in (2, 4)])
    assert RefCoco(root, "train").video_ids() == (ONE,)


def test_a_box_partly_outside_is_kept(root: Path) -> None:
    listed(root, lambda c: c["annotations"][1].update(bbox=[-3.5, -2, 5, 400]))
    assert list(RefCoco(root, "train").check()) == []


def listed(root: Path, change: Callable[[Any], object]) -> None:
    path = root / "refcoco/instances_refcoco_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def sentence(root: Path, change: Callable[[Any], object]) -> None:
    listed(root, lambda c: change(c["images"][0]))


def annotation(root: Path, change: Callable[[Any], object]) -> None:
    """Change the one annotation of object 12."""
    listed(root, lambda c: change(c["annotations"][3]))


def picture(root: Path) -> Path:
    return root / "train2014" / f"{ONE}.jpg"


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "image listed but absent": (lambda r: picture(r).unlink(), f"{ONE}.jpg: the frame is missing"),
    "image cut short": (lambda r: cut(picture(r)), f"{ONE}.jpg: not a whole image"),
    "image of another size": (lambda r: Image.new("RGB", (5, 9)).save(picture(r)), f"{ONE}.jpg: (9, 5) pixels"),
    "image that leaves the folder": (lambda r: sentence(r, lambda i: i.update(file_name=f"../{ONE}.jpg")), f"'../{ONE}'"),
    "image as a path": (lambda r: sentence(r, lambda i: i.update(file_name=str(picture(r)))), "cannot name a folder"),
    "suffix that leaves the folder": (lambda r: sentence(r, lambda i: i.update(file_name="a./b")), "'a./b'"),
    "two suffixes": (
        lambda r: sentence(r, lambda i: i.update(file_name=f"{ONE}.png")),
        f"{ONE}.jpg of (40, 60), an earlier entry has",
    ),
    "two sizes": (lambda r: sentence(r, lambda i: i.update(height=41)), ".jpg of (41, 60)"),
    "size of null": (lambda r: sentence(r, lambda i: i.update(height=None)), "height and width are (None, 60)"),
    "no id": (lambda r: sentence(r, lambda i: i.pop("id")), 'expected a number as "id"'),
    "id of text": (lambda r: sentence(r, lambda i: i.update(id="1")), 'expected a number as "id"'),
    "id twice": (lambda r: sentence(r, lambda i: i.update(id=3)), "the id 3 occurs twice"),
    "text of null": (lambda r: sentence(r, lambda i: i.update(caption=None)), 'a text as "caption"'),
    "empty text": (lambda r: sentence(r, lambda i: i.update(caption=" ")), "expression 1: the text is empty"),
    "no annotation": (lambda r: listed(r, lambda c: c["annotations"].pop(3)), "sentence 4: no annotation has"),
    "annotation of no sentence": (lambda r: annotation(r, lambda a: a.update(image_id=99)), "is of sentence 99"),
    "annotation of null": (lambda r: listed(r, lambda c: c["annotations"].__setitem__(3, None)), "annotation 4: expected"),
    "sentence of null": (lambda r: annotation(r, lambda a: a.update(image_id=None)), "annotation 4: expected"),
    "no box": (lambda r: annotation(r, lambda a: a.pop("bbox")), 'sentence 4: expected "bbox"'),
    "box of text": (lambda r: annotation(r, lambda a: a.update(bbox="1 2 3 4")), 'expected "bbox"'),
    "box without end": (lambda r: annotation(r, lambda a: a.update(bbox=[0, 0, float("nan"), 10**400])), 'expected "bbox"'),
    "object in two images": (lambda r: annotation(r, lambda a: a.update(original_id=21)), "object 21 is in another image"),
    "object with two masks": (lambda r: annotation(r, lambda a: a.update(original_id=11)), "object 11 has another mask"),
    "mask of null": (lambda r: annotation(r, lambda a: a.update(segmentation=None)), "object 12: expected polygons"),
    "no mask": (lambda r: annotation(r, lambda a: a.pop("segmentation")), "object 12: expected polygons"),
    "mask of text": (lambda r: annotation(r, lambda a: a.update(segmentation="zz")), "object 12: expected polygons"),
    "mask of nothing": (lambda r: annotation(r, lambda a: a.update(segmentation=[])), "object 12: expected polygons"),
    "polygon of two points": (lambda r: annotation(r, lambda a: a.update(segmentation=[[1, 2, 3, 4]])), "expected polygons"),
    "polygon of text": (lambda r: annotation(r, lambda a: a.update(segmentation=[["1"] * 6])), "expected polygons"),
    "polygon far outside": (
        lambda r: annotation(r, lambda a: a.update(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]])),
        "expected polygons",
    ),
    "polygon of no number": (
        lambda r: annotation(r, lambda a: a.update(segmentation=[[0, 0, float("nan"), 0, 9, 9]])),
        "expected",
    ),
    "mask without a pixel": (lambda r: annotation(r, lambda a: a.update(segmentation=[[1, 1, 1, 1, 1, 1]])), "has no pixel"),
    "runs of another size": (lambda r: annotation(r, lambda a: a["segmentation"].update(size=[60, 40])), "the mask is (60, 40)"),
    "damaged runs": (lambda r: annotation(r, lambda a: a["segmentation"].update(counts="zz")), "do not fill"),
    "runs of null": (lambda r: annotation(r, lambda a: a["segmentation"].update(counts=None)), "found NoneType"),
    "runs that are too few": (lambda r: annotation(r, lambda a: a["segmentation"]["counts"].pop()), "do not add up"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_check_names_the_fault(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    faults = list(RefCoco(root, "train").check())
    assert any(named in line for line in faults), faults
    assert all("\n" not in line and str(root) in line for line in faults)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_never_changes_the_ground_truth(root: Path, fault: str) -> None:
    """What can still be read of an image equals the undamaged file's; everything else is an error that names the file."""
    undamaged = RefCoco(root, "train")
    targets, masks = {e.key: e.targets for e in undamaged.expressions(ONE)}, undamaged.ground_truth(ONE).masks
    FAULTS[fault][0](root)
    data = RefCoco(root, "train")
    errors = []
    for step in (data.expressions, data.ground_truth):
        try:
            result = step(ONE)
        except InputError as error:
            errors.append(str(error))
            continue
        if isinstance(result, tuple):
            assert {e.key: e.targets for e in result}.items() <= targets.items()
        else:
            assert all(result.masks.bytes_at(k, 0) == masks.bytes_at(int(o) - 11, 0) for k, o in enumerate(result.object_ids))
    assert all(str(root) in line and "\n" not in line for line in errors)


@pytest.mark.parametrize("text", ['{"images":\n oops}', "[]", "null", '{"images": [], "annotations": null}', '{"images": [null]'])
def test_a_malformed_list_names_its_file(root: Path, text: str) -> None:
    (root / "refcoco/instances_refcoco_train.json").write_text(text)
    with pytest.raises(InputError, match="instances_refcoco_train.json(, line . column .*)?"):
        RefCoco(root, "train")


@pytest.mark.parametrize("image", [None, {}, {"file_name": 3}])
def test_an_entry_that_names_no_image(root: Path, image: object) -> None:
    listed(root, lambda c: c["images"].append(image))
    with pytest.raises(InputError, match="train.json, image 6: expected"):
        RefCoco(root, "train")


def test_a_key_that_occurs_twice_is_a_fault(root: Path) -> None:
    path = root / "refcoco/instances_refcoco_train.json"
    path.write_text(path.read_text().replace('"caption": "Box"', '"id": 5'))
    assert any("'id' occurs twice" in line for line in RefCoco(root, "train").check())
    with pytest.raises(InputError, match="'id' occurs twice in one object, and the first value is lost"):
        RefCoco(root, "train").video_ids()


def test_real_polygons_have_coco_s_pixels(real_data: Path) -> None:
    """Outlines of real masks, as polygons, against the pixels that pycocotools' `annToMask` route gives (decode of merge)."""
    import cv2

    truth = open_dataset("mevis", real_data / "mevis-davis", "valid_u").ground_truth("dog")
    assert truth is not None
    mask = truth.masks.decode(0, 0)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [o.ravel().astype(float).tolist() for o in outlines if len(o) >= 3]
    raw = segmentation_bytes(polygons, mask.shape, "test")
    parts = [coco.decode(coco.frPyObjects([p], *mask.shape)).any(2) for p in polygons]
    decoded = coco.decode({"size": list(mask.shape), "counts": raw}).astype(bool)
    assert np.array_equal(decoded, np.any(parts, 0))
    # Outlines run through the centres of the outermost pixels, so half a pixel is missing on every side.
    assert (decoded & mask).sum() / (decoded | mask).sum() > 0.95


def test_a_pseudo_video_is_the_image_in_one_frame(root: Path) -> None:
    still, moving = RefCoco(root, "train"), RefCoco(root, "train-pseudo6")
    assert moving.split == "train-pseudo6" and moving.video_ids() == still.video_ids()
    assert "train-pseudo6" not in RefCoco.splits(root)
    for video_id in still.video_ids():
        assert moving.expressions(video_id) == still.expressions(video_id)
        image, masks = still.video(video_id).read(0), still.ground_truth(video_id).masks
        video, truth = moving.video(video_id), moving.ground_truth(video_id)
        assert (len(video), video.size, video.frame_names[-1]) == (6, SIZE, "00005")
        assert truth.masks.shape == (masks.shape[0], 6) and truth.annotated.all()
        same = [t for t in range(6) if np.array_equal(video.read(t), image)]
        assert len(same) == 1
        assert all(np.array_equal(truth.masks.decode(k, same[0]), masks.decode(k, 0)) for k in range(masks.shape[0]))
    assert list(moving.check()) == []


def test_masks_move_as_the_pixels_do(root: Path) -> None:
    """The object's bright pixels in the warped image against its warped mask."""
    data = RefCoco(root, "train-pseudo9")
    for video_id, k in ((ONE, 0), (ONE, 1), (TWO, 0)):
        video, masks = data.video(video_id), data.ground_truth(video_id).masks
        for t in range(9):
            red, mask = video.read(t)[..., 0] > 145, masks.decode(k, t)
            others = masks.union([i for i in range(masks.shape[0]) if i != k]).decode(0, t)
            off = (red & ~others) ^ mask
            # The edge of a box of 20 x 12 is 60 pixels long: a path that is off by a pixel would show.
            assert off.sum() <= 12, (video_id, k, t, off.sum())


def test_a_pseudo_video_is_the_same_everywhere(root: Path) -> None:
    """Recorded values: a seed that depends on the process, or other random numbers, would change caches that are combined."""
    path = affine_path(ONE, 4, (480, 640))
    expected = [[1.057462723, -0.128520223, 31.795437477], [0.128520223, 1.057462723, -44.202599343]]
    assert np.allclose(path[0], expected, atol=1e-6)
    assert not np.allclose(path, affine_path(TWO, 4, (480, 640)))
    first, again = RefCoco(root, "train-pseudo4"), RefCoco(root, "val-pseudo4")
    again.video(TWO)
    assert all(np.array_equal(first.video(ONE).read(t), again.video(ONE).read(t)) for t in (3, 0))
    assert first.ground_truth(ONE).masks == again.ground_truth(ONE).masks


@settings(max_examples=60, deadline=None)
@given(key=st.text(max_size=8), frames=st.integers(2, 60), height=st.integers(8, 700), width=st.integers(8, 700))
def test_paths_are_smooth_and_bounded(key: str, frames: int, height: int, width: int) -> None:
    """Rotation, zoom and shift of the centre, computed from the matrices, against the ranges in the module."""
    path = affine_path(key, frames, (height, width))
    zoom = np.hypot(path[:, 0, 0], path[:, 0, 1])
    turn = np.degrees(np.arctan2(path[:, 0, 1], path[:, 0, 0]))
    centre = np.array([(width - 1) / 2, (height - 1) / 2, 1])
    shift = (path @ centre - centre[:2]) / (width, height)
    values = np.stack([turn / 20, np.log(zoom) / np.log(1.25), shift[:, 0] / 0.1, shift[:, 1] / 0.1], axis=1)
    assert (np.abs(values) <= 1 + 1e-6).all()
    # The steepest sine: half a period in the whole video.
    assert (np.abs(np.diff(values, axis=0)) <= np.pi / frames + 1e-6).all()
    assert (np.abs(path - np.eye(3)[:2]).max((1, 2)) == 0).sum() >= 1


def test_out_of_view_is_empty_and_black() -> None:
    away = np.array([[1.0, 0, 1000], [0, 1, 0]])
    raw = warp_mask(pixels(11), away)
    assert coco.area({"size": list(SIZE), "counts": raw}) == 0
    assert not warp_image(np.full((*SIZE, 3), 200, np.uint8), away).any()
    by_three = np.array([[1.0, 0, 3], [0, 1, -2]])
    moved = coco.decode({"size": list(SIZE), "counts": warp_mask(pixels(11), by_three)})
    assert np.array_equal(moved, np.roll(pixels(11), (-2, 3), (0, 1)))


@pytest.mark.parametrize(
    "split", ["train-pseudo1", "train-pseudo201", "train-pseudo0", "train-pseudo", "-pseudo4", "nix-pseudo4"]
)
def test_invalid_pseudo_splits(root: Path, split: str) -> None:
    with pytest.raises(InputError, match="splits.*: train, val"):
        RefCoco(root, split)


@pytest.mark.parametrize("split", ["train", "train-pseudo4"])
def test_extraction_to_scores(root: Path, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands accept videos of one frame, and frames that are in no file."""
    cache = tmp_path / "c.zarr"
    at = ("--dataset", "refcoco", "--root", root, "--split", split)
    assert call(monkeypatch, None, "extract", *at, "--out", cache)[0] == 0
    assert call(monkeypatch, None, "oracle", "--cache", cache, "--json", tmp_path / "o.json")[0] == 0
