"""The user's own videos: one error line for every fault."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain_files import SIZE, first, frame, lists, mask, number_from_1, write_plain
from youtube_files import cut, numbers, white_is_0, write_png

from rvos_cache.datasets.plain import Plain
from rvos_cache.errors import InputError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    write_plain(root)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


def claim(path: Path) -> None:
    """Write 65,535 x 65,535 pixels into the header of a PNG."""
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", 65_535, 65_535)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "video listed but absent": (lambda r: shutil.rmtree(r / "train/videos/a b"), "videos/a b: not found, nor a b.mp4"),
    "film listed but absent": (lambda r: (r / "train/videos/film.mp4").unlink(), "videos/film: not found, nor film.mp4"),
    "film cut short": (lambda r: (r / "train/videos/film.mp4").write_bytes(b"film"), "film.mp4: cannot be decoded"),
    "film of another ending": (
        lambda r: (r / "train/videos/film.mp4").rename(r / "train/videos/film.txt"),
        "videos/film: not found, nor film.mp4 or another film (film.txt is no film: .mp4, ",
    ),
    "two films": (
        lambda r: shutil.copy(r / "train/videos/film.mp4", r / "train/videos/film.MOV"),
        "videos/film.MOV and film.mp4: the video occurs twice",
    ),
    "frame with transparent pixels": (
        lambda r: Image.new("RGBA", SIZE[::-1], (9, 9, 9, 9)).save(frame(r, "9.png")),
        "a b/9.png: has transparent pixels",
    ),
    "frame of several pictures": (
        lambda r: Image.new("RGB", SIZE[::-1]).save(
            frame(r, "9.png"), save_all=True, append_images=[Image.new("RGB", (12, 8), 9)]
        ),
        "a b/9.png: holds 2 pictures",
    ),
    "frame of another kind": (lambda r: frame(r, "11.heic").touch(), "a b/11.heic: not a frame that is read"),
    "mask of another kind": (
        lambda r: Image.new("L", SIZE[::-1]).save(mask(r).with_suffix(".bmp")),
        "a b/2.bmp: an annotation is",
    ),
    "mask whose white is colour 0": (
        lambda r: white_is_0(mask(r)),
        "a b/2.png: colour 0 of its palette, the background, is (255",
    ),
    "masks numbered from 1": (lambda r: number_from_1(r), "masks/film: 1 masks belong to no frame, 00003.png first"),
    "folder and film": (lambda r: (r / "train/videos/film").mkdir(), "videos/film and film.mp4: the video occurs twice"),
    "no frames": (lambda r: [frame(r, n).unlink() for n in ("2.jpg", "9.png", "10.png")], "videos/a b: no frames"),
    "frame cut short": (lambda r: cut(frame(r, "2.jpg")), "a b/2.jpg: not a whole image"),
    "frame that claims too many pixels": (lambda r: claim(frame(r, "9.png")), "a b/9.png: not a whole image"),
    "mask that claims too many pixels": (lambda r: claim(mask(r)), "a b/2.png: not a whole PNG"),
    "frame of another size": (lambda r: Image.new("RGB", (5, 5)).save(frame(r, "9.png")), "a b/9.png: (5, 5)"),
    "frame as two files": (lambda r: shutil.copy(frame(r, "9.png"), frame(r, "9.jpg")), "9.jpg and 9.png"),
    "frame that cannot be written": (lambda r: frame(r, "9.png").rename(frame(r, "9:1.png")), "'9:1'"),
    "video id that leaves the folder": (lambda r: lists(r, lambda v: v.update({"../test/videos/a b": ["x"]})), "'../test"),
    "video as a path": (lambda r: lists(r, lambda v: v.update({str(r): ["x"]})), "cannot name a folder"),
    "expression id that leaves the folder": (lambda r: lists(r, lambda v: v["a b"].update({"..": v["a b"]["y"]})), "'..'"),
    "no expressions": (lambda r: lists(r, lambda v: v.update({"film": []})), "video film: expected"),
    "expressions of null": (lambda r: lists(r, lambda v: v.update({"film": None})), "video film: expected"),
    "text of null": (lambda r: first(r, lambda e: e.update(text=None)), "expression x: expected a text"),
    "empty text": (lambda r: first(r, lambda e: e.update(text=" ")), "expression x: the text is empty"),
    "half a character": (lambda r: first(r, lambda e: e.update(text="\ud83d")), "half a character"),
    "objects left out": (
        lambda r: lists(r, lambda v: v["a b"].update(x="both")),
        'expression x: expected {"text": text, "objects"',
    ),
    "objects of null": (lambda r: first(r, lambda e: e.update(objects=None)), "expression x: expected"),
    "an object of text": (lambda r: first(r, lambda e: e.update(objects=["1"])), "from 1 to 254, got '1'"),
    "object 0": (lambda r: first(r, lambda e: e.update(objects=[0])), "got 0"),
    "object 255": (lambda r: first(r, lambda e: e.update(objects=[255])), "got 255"),
    "object true": (lambda r: first(r, lambda e: e.update(objects=[True])), "got True"),
    "object that no mask shows": (lambda r: first(r, lambda e: e["objects"].append(7)), "expression x: no PNG in"),
    "mask of 0 and 255": (
        lambda r: write_png(mask(r), np.where(numbers(2, 0) > 0, 255, 0).astype(np.uint8)),
        "2.png: has 255 as an object, as masks of 0 and 255 do",
    ),
    "mask of no frame": (lambda r: write_png(mask(r, "3"), numbers(2, 0)), "1 masks belong to no frame, 3.png first"),
    "masks of other names": (
        lambda r: [mask(r, old).rename(mask(r, new)) for old, new in (("2", "00002"), ("10", "00010"))],
        "masks/a b: no frame of the video has a mask",
    ),
    "masks absent": (lambda r: shutil.rmtree(r / "train/masks/a b"), "masks/a b: no folder"),
    "mask cut short": (lambda r: cut(mask(r)), "a b/2.png: not a whole PNG"),
    "mask of another size": (lambda r: write_png(mask(r), numbers(2, 0)[:5]), "a b/2.png: (5, 12) pixels"),
    "mask in colours": (lambda r: Image.new("RGB", SIZE[::-1]).save(mask(r)), "a b/2.png: expected a palette PNG"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_check_names_the_fault(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    faults = list(Plain(root, "train").check())
    assert any(named in line for line in faults), faults
    assert all("\n" not in line and str(root) in line for line in faults)


@pytest.mark.parametrize(
    "fault", ["masks absent", "mask cut short", "mask of another size", "object that no mask shows", "masks of other names"]
)
def test_a_damaged_mask_raises(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    data = Plain(root, "train")
    with pytest.raises(InputError) as error:
        data.ground_truth("a b")
    assert named in str(error.value)
    assert data.ground_truth("film") is not None


def test_a_damaged_expression_does_not_affect_the_other_video(root: Path) -> None:
    lists(root, lambda v: v["a b"].update(x="both squares"))
    data = Plain(root, "train")
    for step in (data.expressions, data.ground_truth):
        with pytest.raises(InputError, match="expression x: expected"):
            step("a b")
        assert step("film")
    assert data.expression_ids("a b") == ("x", "y", "z")


def test_check_names_all_faults_of_a_video(root: Path) -> None:
    cut(frame(root, "2.jpg"))
    cut(mask(root))
    first(root, lambda e: e.update(text=""))
    faults = list(Plain(root, "train").check())
    expected = ["expression x: the text is empty", "a b/2.jpg", "a b/2.png"]
    assert len(faults) == len(expected)
    assert all(part in line for part, line in zip(expected, faults)), faults


def test_a_key_that_occurs_twice_is_a_fault(root: Path) -> None:
    path = root / "train/expressions.json"
    path.write_text(path.read_text().replace('"film": ', '"a b": '))
    assert any("'a b' occurs twice" in line for line in Plain(root, "train").check())
    with pytest.raises(InputError, match="'a b' occurs twice in one object, and the first value is lost"):
        Plain(root, "train").video_ids()


@pytest.mark.parametrize("text", ['{"a":\n oops}', "[]", "{}", "null"])
def test_a_malformed_list_names_its_file(root: Path, text: str) -> None:
    (root / "train/expressions.json").write_text(text)
    with pytest.raises(InputError, match="train/expressions.json(, line 2, column 2)?: "):
        Plain(root, "train")
