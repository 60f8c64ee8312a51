"""Ref-YouTube-VOS: one error line for every fault."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from youtube_files import (
    HELD_OUT,
    SIZE,
    annotation,
    cut,
    edited,
    meta,
    numbers,
    white_is_0,
    write_frames,
    write_png,
    write_youtube,
)

from rvos_cache.datasets.ref_youtube_vos import RefYoutubeVos
from rvos_cache.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_youtube(tmp_path)
    return tmp_path


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


def turned(path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 3
    Image.fromarray(numbers(2, 0)).save(path, exif=tag)


def first(root: Path, change: Callable[[Any], object]) -> None:
    """Change the first expression of video a."""
    meta(root, lambda v: change(v["a"]["expressions"]["0"]))


def objects(root: Path, change: Callable[[Any], object]) -> None:
    edited(root / "train/meta.json", change)


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


def test_a_key_that_occurs_twice_is_a_fault(root: Path) -> None:
    path = root / "meta_expressions/train/meta_expressions.json"
    path.write_text(path.read_text().replace(f'"{HELD_OUT}": {{', '"a": {'))
    assert any("'a' occurs twice" in line for line in RefYoutubeVos(root, "train").check())
    with pytest.raises(InputError, match="'a' occurs twice in one object, and the first value is lost"):
        RefYoutubeVos(root, "train").video_ids()


@pytest.mark.parametrize("text", ['{"videos":\n oops}', "[]", '{"videos": []}'])
def test_a_malformed_list_names_its_file(root: Path, text: str) -> None:
    (root / "meta_expressions/test/meta_expressions.json").write_text(text)
    for split in ("valid", "test"):
        with pytest.raises(InputError, match="test/meta_expressions.json(, line 2, column 2)?: "):
            RefYoutubeVos(root, split)
