"""Ref-YouTube-VOS: what it reads, which videos belong to which split, and one error line for every fault."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.ref_youtube_vos import RefYoutubeVos, is_held_out
from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import write_mask_png
from rvos_select.submission import submit

SIZE = (8, 12)
NAMES = ("00000", "00005", "00010")
HELD_OUT = next(name for name in map("v{}".format, count()) if is_held_out(name))


def write_frames(root: Path, split: str, video: str, names: tuple[str, ...] = NAMES) -> None:
    """Write a folder of grey frames, each of another grey."""
    folder = root / split / "JPEGImages" / video
    folder.mkdir(parents=True)
    for t, name in enumerate(names):
        Image.fromarray(np.full((*SIZE, 3), 10 * t + 20, np.uint8)).save(folder / f"{name}.jpg")


def numbers(objects: int, t: int) -> np.ndarray:
    """Object n is a 2x2 square in column 3 n of row t."""
    pixels = np.zeros(SIZE, np.uint8)
    for number in range(1, objects + 1):
        pixels[t : t + 2, 3 * number - 2 : 3 * number] = number
    return pixels


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels, "P")
    image.putpalette([*range(256)] * 3)
    image.save(path)


def write_list(root: Path, split: str, videos: Mapping[str, Any], names: tuple[str, ...] = NAMES) -> None:
    """videos: video -> expressions."""
    path = root / "meta_expressions" / split / "meta_expressions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"videos": {v: {"expressions": expressions, "frames": names} for v, expressions in videos.items()}})
    )


def write_youtube(root: Path) -> None:
    """train: two videos; the first has two objects and a frame that is not annotated, the second is held out. valid: two, one of
    which is in test."""
    objects_of = {"a": {"0": "1", "1": "2", "2": "1"}, HELD_OUT: {"0": "1"}}
    write_list(
        root, "train", {v: {i: {"exp": f"object {o}", "obj_id": o} for i, o in ids.items()} for v, ids in objects_of.items()}
    )
    meta: dict[str, Any] = {}
    for video, objects in (("a", 2), (HELD_OUT, 1)):
        write_frames(root, "train", video)
        listed = [(t, name) for t, name in enumerate(NAMES) if video != "a" or t != 1]
        for t, name in listed:
            write_png(root / "train/Annotations" / video / f"{name}.png", numbers(objects, t))
        meta[video] = {
            "objects": {str(n): {"category": "square", "frames": [m for _, m in listed]} for n in range(1, objects + 1)}
        }
    (root / "train/meta.json").write_text(json.dumps({"videos": meta}))
    write_list(root, "valid", {v: {"0": {"exp": "the square"}, "1": {"exp": "it"}} for v in ("c", "d")})
    write_list(root, "test", {"d": {"0": {"exp": "the square"}}})
    for video in ("c", "d"):
        write_frames(root, "valid", video)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_youtube(tmp_path)
    return tmp_path


def test_reads_the_annotations(root: Path) -> None:
    data = open_dataset("ref-youtube-vos", root, "train")
    assert RefYoutubeVos.splits(root) == ["train", "valid", "test"]
    assert data.video_ids() == ("a", HELD_OUT)
    assert [e.targets for e in data.expressions("a")] == [("a-1",), ("a-2",), ("a-1",)]
    assert [e.text for e in data.expressions("a")] == ["object 1", "object 2", "object 1"]
    truth = data.ground_truth("a")
    assert truth is not None
    assert truth.object_ids == ("a-1", "a-2")
    assert truth.annotated.tolist() == [True, False, True]
    assert truth.masks.area().tolist() == [[4, 0, 4]] * 2
    for k, number in enumerate((1, 2)):
        assert np.array_equal(truth.masks.decode(k, 2), numbers(2, 2) == number)
    assert list(data.check()) == []


def test_objects_that_no_expression_names_are_left_out(root: Path) -> None:
    meta(root, lambda v: v["a"]["expressions"].pop("1"))
    data = RefYoutubeVos(root, "train")
    truth = data.ground_truth("a")
    assert truth is not None and truth.object_ids == ("a-1",)
    assert list(data.check()) == []


def test_frames_are_in_order_whatever_the_list(root: Path) -> None:
    meta(root, lambda v: v["a"]["frames"].reverse())
    data = RefYoutubeVos(root, "train")
    assert data.video("a").frame_names == NAMES
    truth = data.ground_truth("a")
    assert truth is not None and truth.masks.decode(0, 0)[0, 1]


def test_numbers_with_gaps_are_those_of_the_pixels(root: Path) -> None:
    """Objects 1 and 3 of a palette: object 2 does not exist, and 3 is not taken for it."""
    meta(root, lambda v: [e.update(obj_id="3") for e in v["a"]["expressions"].values() if e["obj_id"] == "1"])
    for name in ("00000", "00010"):
        pixels = numbers(3, 0)
        pixels[pixels == 1] = 0
        write_png(annotation(root, name), pixels)
    truth = RefYoutubeVos(root, "train").ground_truth("a")
    assert truth is not None and truth.object_ids == ("a-2", "a-3")
    assert np.argwhere(truth.masks.decode(1, 0)).min(0).tolist() == [0, 7]


def test_an_annotation_of_no_listed_frame_is_told(root: Path) -> None:
    write_png(annotation(root, "00007"), numbers(2, 0))
    with pytest.warns(UserWarning, match=r"Annotations/a: 1 of its annotations are not listed, 00007\.png first"):
        truth = RefYoutubeVos(root, "train").ground_truth("a")
    assert truth is not None and truth.masks.shape[1] == len(RefYoutubeVos(root, "train").video("a"))


def renumbered(path: Path) -> None:
    """The PNG as a program saves it that numbers colours anew: object 2 becomes 1 in a palette of the colours that occur."""
    write_png(path, numbers(2, 0))
    pixels, colours = numbers(2, 0), np.array([[0, 1, 2], [6, 7, 8]], np.uint8)
    image = Image.fromarray((pixels == 2).astype(np.uint8))
    image.putpalette(colours.ravel().tolist())
    image.save(path)


def test_a_number_of_another_colour_is_told(root: Path) -> None:
    renumbered(annotation(root, "00010"))
    with pytest.warns(UserWarning, match=r"00010\.png: object 1 has the colour \(6, 7, 8\), in 00000\.png \(3, 4, 5\)"):
        RefYoutubeVos(root, "train").ground_truth("a")
    write_png(annotation(root, "00010"), numbers(2, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RefYoutubeVos(root, "train").ground_truth("a") is not None


def white_is_0(path: Path) -> None:
    image = Image.fromarray((numbers(1, 0) == 0).astype(np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)


def turned(path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 3
    Image.fromarray(numbers(2, 0)).save(path, exif=tag)


def test_valid_has_the_videos_that_test_does_not_list(root: Path) -> None:
    assert RefYoutubeVos(root, "valid").video_ids() == ("c",)
    assert RefYoutubeVos(root, "test").video_ids() == ("d",)
    assert RefYoutubeVos(root, "test").video("d").read(0).shape == (*SIZE, 3)
    assert list(RefYoutubeVos(root, "test").check()) == []


def test_the_published_list_of_valid_needs_that_of_test(root: Path) -> None:
    videos = {f"x{i}": {"0": {"exp": "it"}} for i in range(507)}
    write_list(root, "valid", videos)
    write_list(root, "test", {v: videos[v] for v in list(videos)[202:]})
    assert RefYoutubeVos(root, "valid").video_ids() == tuple(videos)[:202]
    write_list(root, "test", {v: videos[v] for v in list(videos)[203:]})
    with pytest.raises(InputError, match=r"valid.meta_expressions.json: expected 202 videos = 507 - 305 of .*, got 203 of 507"):
        RefYoutubeVos(root, "valid")
    (root / "meta_expressions/test/meta_expressions.json").unlink()
    with pytest.raises(InputError, match="valid/meta_expressions.json: lists 507 videos, also those of test"):
        RefYoutubeVos(root, "valid")
    write_list(root, "valid", dict(list(videos.items())[:202]))
    assert len(RefYoutubeVos(root, "valid").video_ids()) == 202


def test_a_list_of_valid_with_nothing_of_its_own(root: Path) -> None:
    write_list(root, "test", {v: {} for v in ("c", "d")})
    with pytest.raises(InputError, match="no video of split valid"):
        RefYoutubeVos(root, "valid")


def test_the_parts_of_train(root: Path) -> None:
    assert RefYoutubeVos(root, "fit").video_ids() == ("a",)
    held_out = RefYoutubeVos(root, "held_out")
    assert held_out.video_ids() == (HELD_OUT,) and held_out.has_ground_truth
    assert held_out.ground_truth(HELD_OUT) is not None
    assert list(held_out.check()) == []
    share = sum(is_held_out(f"{i:010x}") for i in range(4000)) / 4000
    assert 0.04 < share < 0.06


def test_ground_truth_added_to_valid(root: Path) -> None:
    """YouTube-VOS's annotations of first frames are no ground truth; annotations of objects that expressions name are."""
    for t, name in enumerate(NAMES):
        write_png(root / f"valid/Annotations/c/{name}.png", numbers(1, t))
    assert not RefYoutubeVos(root, "valid").has_ground_truth
    meta(root, lambda v: [e.update(obj_id="1") for e in v["c"]["expressions"].values()], "valid")
    data = RefYoutubeVos(root, "valid")
    assert data.has_ground_truth
    truth = data.ground_truth("c")
    assert truth is not None and truth.masks.area().tolist() == [[4, 4, 4]]
    assert list(data.check()) == []
    shutil.rmtree(root / "valid/Annotations")
    assert not RefYoutubeVos(root, "valid").has_ground_truth


def test_a_submission_has_the_videos_and_frames_of_its_split(root: Path) -> None:
    """Videos of test and unlisted frames may be among the predictions; they are not packed."""
    for video in ("c", "d"):
        for expression in ("0", "1"):
            folder = root / "masks" / video / expression
            folder.mkdir(parents=True)
            for name in (*NAMES, "00007"):
                write_mask_png(folder / f"{name}.png", numbers(1, 0) > 0)
    out = submit(root / "masks", "ref-youtube-vos", root / "out.zip", root=root, split="valid")
    expected = [f"Annotations/c/{expression}/{name}.png" for expression in ("0", "1") for name in NAMES]
    assert zipfile.ZipFile(out).namelist() == expected
    (root / "masks/c/1/00005.png").unlink()
    with pytest.raises(InputError, match="c/1/00005.png: the mask is missing"):
        submit(root / "masks", "ref-youtube-vos", root / "out.zip", root=root, split="valid")


def edited(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content["videos"])
    path.write_text(json.dumps(content))


def meta(root: Path, change: Callable[[Any], object], split: str = "train") -> None:
    edited(root / "meta_expressions" / split / "meta_expressions.json", change)


def first(root: Path, change: Callable[[Any], object]) -> None:
    """Change the first expression of video a."""
    meta(root, lambda v: change(v["a"]["expressions"]["0"]))


def objects(root: Path, change: Callable[[Any], object]) -> None:
    edited(root / "train/meta.json", change)


def annotation(root: Path, name: str = "00000") -> Path:
    return root / f"train/Annotations/a/{name}.png"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing frame": (lambda r: (r / "train/JPEGImages/a/00005.jpg").unlink(), "a/00005.jpg"),
    "truncated frame": (lambda r: cut(r / "train/JPEGImages/a/00010.jpg"), "a/00010.jpg"),
    "frame of another size": (lambda r: Image.new("RGB", (5, 5)).save(r / "train/JPEGImages/a/00005.jpg"), "a/00005.jpg: (5, 5)"),
    "unlisted frame": (
        lambda r: meta(r, lambda v: v["a"]["frames"].remove("00005")),
        "not listed, 00005.jpg first",
    ),
    "video listed but absent": (lambda r: shutil.rmtree(r / "train/JPEGImages/a"), "train/JPEGImages/a: no folder"),
    "annotations absent": (lambda r: shutil.rmtree(r / "train/Annotations/a"), "train/Annotations/a: no folder"),
    "all annotations absent": (lambda r: shutil.rmtree(r / "train/Annotations"), "train/Annotations/a: no folder"),
    "no annotation of a listed frame": (
        lambda r: ([annotation(r, n).unlink() for n in ("00000", "00010")], (r / "train/meta.json").unlink()),
        "train/Annotations/a: no listed frame",
    ),
    "annotation that meta.json claims": (lambda r: annotation(r, "00010").unlink(), "a/00010.png: the annotation is missing"),
    "unlisted annotation": (
        lambda r: write_png(annotation(r, "00007"), numbers(2, 0)),
        "1 of its annotations are not listed, 00007.png first",
    ),
    "annotation cut short": (lambda r: cut(annotation(r)), "a/00000.png: not a whole PNG"),
    "annotation of another size": (lambda r: write_png(annotation(r), numbers(2, 0)[:5]), "a/00000.png: (5, 12) pixels"),
    "annotation whose white is colour 0": (
        lambda r: white_is_0(annotation(r)),
        "a/00000.png: colour 0 of its palette, the background, is (255, 255, 255), expected black",
    ),
    "annotation that is turned": (lambda r: turned(annotation(r)), "a/00000.png: has an EXIF tag that turns it"),
    "annotation of two pictures": (
        lambda r: Image.new("L", SIZE[::-1]).save(annotation(r), save_all=True, append_images=[Image.new("L", SIZE[::-1], 1)]),
        "a/00000.png: holds 2 pictures, a mask is one",
    ),
    "annotation as a JPEG": (
        lambda r: annotation(r).rename(annotation(r).with_suffix(".jpg")),
        "a/00000.jpg: an annotation is a PNG",
    ),
    "annotation as two files": (
        lambda r: shutil.copy(annotation(r), annotation(r).with_suffix(".PNG")),
        "a: 00000.PNG and 00000.png are of one frame",
    ),
    "frames in no known order": (
        lambda r: meta(r, lambda v: v["a"].update(frames=["00010", "x", "00000"])),
        "video a: the order of the frames is unknown: they are not listed by name, and 'x' and '00000' differ in more than",
    ),
    "annotation in colours": (lambda r: Image.new("RGB", SIZE[::-1]).save(annotation(r)), "a/00000.png: expected a palette PNG"),
    "annotation with an unknown object": (
        lambda r: write_png(annotation(r), numbers(2, 0) + np.uint8(3) * (numbers(2, 5) > 0)),
        "a/00000.png: has object 3, which",
    ),
    "target in no annotation": (
        lambda r: [write_png(annotation(r, n), numbers(1, 0)) for n in ("00000", "00010")],
        "expression 1: no PNG in",
    ),
    "annotations without an object": (
        lambda r: [write_png(annotation(r, n), numbers(0, 0)) for n in ("00000", "00010")],
        "expression 0: no PNG in",
    ),
    "object that meta.json lacks": (
        lambda r: objects(r, lambda v: v["a"]["objects"].pop("2")),
        "expression 1: object 2 is not in",
    ),
    "video that meta.json lacks": (lambda r: objects(r, lambda v: v.pop("a")), "meta.json, video a: expected"),
    "bad frames in meta.json": (
        lambda r: objects(r, lambda v: v["a"]["objects"]["1"].update(frames=1)),
        "video a, object 1: expected",
    ),
    "bad number in meta.json": (lambda r: objects(r, lambda v: v["a"]["objects"].update({"x": {}})), "got 'x'"),
    "broken meta.json": (lambda r: (r / "train/meta.json").write_text('{"videos":\n{,'), "meta.json, line 2, column 2"),
    "no object number": (lambda r: first(r, lambda e: e.pop("obj_id")), "expression 0: expected an object number"),
    "object number 0": (lambda r: first(r, lambda e: e.update(obj_id="0")), "expression 0"),
    "object number 255": (lambda r: first(r, lambda e: e.update(obj_id=255)), "expression 0"),
    "object number that is none": (lambda r: first(r, lambda e: e.update(obj_id=[1])), "got [1]"),
    "object number that leaves the folder": (lambda r: first(r, lambda e: e.update(obj_id="../1")), "got '../1'"),
    "empty sentence": (lambda r: first(r, lambda e: e.update(exp=" ")), "expression 0: the text is empty"),
    "sentence that is none": (lambda r: first(r, lambda e: e.update(exp=None)), "expression 0: expected"),
    "id that leaves the folder": (lambda r: meta(r, lambda v: v.update({"../x": v["a"]})), "'../x'"),
    "frame that leaves the folder": (lambda r: meta(r, lambda v: v["a"].update(frames=["../../b/0"])), "'../../b/0'"),
    "frame listed twice": (lambda r: meta(r, lambda v: v["a"]["frames"].append("00005")), "frame 00005 is listed twice"),
    "no list of frames": (lambda r: meta(r, lambda v: v["a"].pop("frames")), '"frames" must be'),
    "no expressions": (lambda r: meta(r, lambda v: v["a"].pop("expressions")), '"expressions" must be'),
    "no entry": (lambda r: meta(r, lambda v: v.update(a=3)), "no video 'a'"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_check_names_the_fault(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    faults = list(RefYoutubeVos(root, "train").check())
    assert any(named in line for line in faults), faults
    assert all("\n" not in line and str(root) in line for line in faults)


@pytest.mark.parametrize("fault", ["annotation of another size", "annotation cut short", "annotations absent"])
def test_a_damaged_annotation_raises(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    data = RefYoutubeVos(root, "train")
    with pytest.raises(InputError) as error:
        data.ground_truth("a")
    assert named in str(error.value)
    assert data.ground_truth(HELD_OUT) is not None


@pytest.mark.parametrize("fault", ["target in no annotation", "no annotation of a listed frame"])
def test_missing_ground_truth_raises(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    with pytest.raises(InputError) as error:
        RefYoutubeVos(root, "train").ground_truth("a")
    assert named in str(error.value)


def test_check_names_all_faults_of_a_video(root: Path) -> None:
    """Faults of the first frame and of an expression do not hide those of other frames and annotations."""
    (root / "train/JPEGImages/a/00000.jpg").unlink()
    first(root, lambda e: e.update(exp=""))
    cut(annotation(root))
    write_png(annotation(root, "00010"), numbers(2, 2)[:4])
    faults = list(RefYoutubeVos(root, "train").check())
    expected = ["expression 0: the text is empty", "a/00000.jpg", "a/00000.png", "a/00010.png"]
    assert len(faults) == len(expected)
    assert all(part in line for part, line in zip(expected, faults)), faults


def test_check_counts_faults_past_a_number(root: Path) -> None:
    names = tuple(f"{t:05d}" for t in range(23))
    shutil.rmtree(root / "train/JPEGImages/a")
    write_frames(root, "train", "a", names)
    meta(root, lambda v: v["a"].update(frames=names))
    for name in names:
        annotation(root, name).write_bytes(b"none")
    faults = list(RefYoutubeVos(root, "train").check())
    assert len(faults) == 21
    assert faults[-1].endswith("train/Annotations/a: 3 more faults of annotations")


def test_grey_and_two_colours_are_palettes_too(root: Path) -> None:
    Image.fromarray(numbers(2, 0)).save(annotation(root))
    Image.fromarray(numbers(1, 0) > 0).save(root / f"train/Annotations/{HELD_OUT}/00000.png")
    data = RefYoutubeVos(root, "train")
    truths = [data.ground_truth(v) for v in data.video_ids()]
    assert [t is not None and t.masks.area()[:, 0].tolist() for t in truths] == [[4, 4], [4]]
    assert list(data.check()) == []


def test_hidden_files_are_no_annotations(root: Path) -> None:
    annotation(root, "._00000").write_bytes(b"none")
    assert list(RefYoutubeVos(root, "train").check()) == []


def test_folders_reached_by_a_link(root: Path) -> None:
    (root / "train/JPEGImages").rename(root / "elsewhere")
    (root / "train/JPEGImages").symlink_to(root / "elsewhere", target_is_directory=True)
    data = RefYoutubeVos(root, "train")
    assert list(data.check()) == []
    assert data.video("a").read(2).shape == (*SIZE, 3)


def test_a_key_that_occurs_twice_is_a_fault(root: Path) -> None:
    path = root / "meta_expressions/train/meta_expressions.json"
    path.write_text(path.read_text().replace(f'"{HELD_OUT}": {{', '"a": {'))
    assert any("'a' occurs twice" in line for line in RefYoutubeVos(root, "train").check())
    with pytest.raises(InputError, match="'a' occurs twice in one object, and the first value is lost"):
        RefYoutubeVos(root, "train").video_ids()


@pytest.mark.parametrize("split", ["..", "train/..", "/", ""])
def test_a_split_that_leaves_the_root(root: Path, split: str) -> None:
    with pytest.raises(InputError, match="cannot name a folder"):
        RefYoutubeVos(root, split)


@pytest.mark.parametrize("text", ['{"videos":\n oops}', "[]", '{"videos": []}'])
def test_a_malformed_list_names_its_file(root: Path, text: str) -> None:
    (root / "meta_expressions/test/meta_expressions.json").write_text(text)
    for split in ("valid", "test"):
        with pytest.raises(InputError, match="test/meta_expressions.json(, line 2, column 2)?: "):
            RefYoutubeVos(root, split)


def test_real_expressions(real_data: Path, tmp_path: Path) -> None:
    """The published list of valid, with a list of test of any 305 of its videos (the published one is not available)."""
    shutil.copytree(real_data / "ref-youtube-vos", tmp_path / "data")
    root = tmp_path / "data"
    with pytest.raises(InputError, match="lists 507 videos"):
        RefYoutubeVos(root, "valid")
    (root / "meta_expressions").chmod(0o755)
    raw = json.loads((root / "meta_expressions/valid/meta_expressions.json").read_text())["videos"]
    test = {v: raw[v] for v in list(raw)[::2] + list(raw)[1:102:2]}
    (root / "meta_expressions/test").mkdir()
    (root / "meta_expressions/test/meta_expressions.json").write_text(json.dumps({"videos": test}))
    parts = [RefYoutubeVos(root, split) for split in ("valid", "test")]
    assert [len(part.video_ids()) for part in parts] == [202, 305]
    assert not any(part.has_ground_truth for part in parts)
    texts = {e.key: e.text for part in parts for v in part.video_ids() for e in part.expressions(v)}
    assert len(texts) == 2096
    assert texts["0062f687f1/1"] == "a dog with puppies all around"
    assert all(e.targets is None for e in parts[0].expressions(parts[0].video_ids()[0]))
