"""The user's own videos: folders and mp4 files, when a split has ground truth, and one error line for every fault."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import call
from PIL import Image
from test_ref_youtube_vos import cut, numbers, write_png

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.plain import Plain
from rvos_cache.errors import InputError
from rvos_cache.frames import VideoWriter

SIZE = (8, 12)
NAMES = ("2", "9", "10")
"""Names of the frames in the folder, neither contiguous nor of one length."""


def write_videos(folder: Path) -> None:
    """Video "a b" as a folder of frames, "film" as an mp4 of three."""
    frames = folder / "videos/a b"
    frames.mkdir(parents=True)
    for t, name in enumerate(NAMES):
        Image.fromarray(np.full((*SIZE, 3), 10 * t + 20, np.uint8)).save(frames / f"{name}.{'png' if t else 'jpg'}")
    with VideoWriter(folder / "videos/film.mp4", 5, SIZE) as writer:
        for t in range(3):
            writer.write(np.full((*SIZE, 3), 60 * t + 20, np.uint8))


def write_plain(root: Path) -> None:
    """train: two videos with masks; "a b" has two objects, and its middle frame is not annotated. test: texts only."""
    for split in ("train", "test"):
        write_videos(root / split)
    entries: dict[str, Any] = {
        "a b": {
            "x": {"text": "both squares", "objects": [2, 1]},
            "y": {"text": "a dog", "objects": []},
            "z": {"text": "the second", "objects": [2]},
        },
        "film": [{"text": "the square", "objects": [1]}, {"text": "it", "objects": [1]}],
    }
    (root / "train/expressions.json").write_text(json.dumps(entries))
    for t, name in enumerate(NAMES):
        if name != "9":
            write_png(root / f"train/masks/a b/{name}.png", numbers(2, t))
        write_png(root / f"train/masks/film/{t:05d}.png", numbers(1, t))
    (root / "test/expressions.json").write_text(json.dumps({"a b": {"x": "both squares"}, "film": ["the square", "it"]}))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    write_plain(root)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


def test_reads_the_annotations(root: Path) -> None:
    data = open_dataset("plain", root, "train")
    assert Plain.splits(root) == ["test", "train"]
    assert data.video_ids() == ("a b", "film") and data.has_ground_truth
    assert [(e.expression_id, e.text, e.targets) for e in data.expressions("a b")] == [
        ("x", "both squares", ("a b-2", "a b-1")),
        ("y", "a dog", ()),
        ("z", "the second", ("a b-2",)),
    ]
    assert [(e.expression_id, e.targets) for e in data.expressions("film")] == [("0", ("film-1",)), ("1", ("film-1",))]
    assert data.video("a b").frame_names == NAMES
    assert [int(data.video("a b").read(t)[0, 0, 0]) for t in (1, 2)] == [30, 40]
    film = data.video("film")
    assert (film.frame_names, film.size) == (("00000", "00001", "00002"), SIZE)
    truth = data.ground_truth("a b")
    assert truth is not None and truth.object_ids == ("a b-1", "a b-2")
    assert truth.annotated.tolist() == [True, False, True]
    assert truth.masks.area().tolist() == [[4, 0, 4]] * 2
    for k, number in enumerate((1, 2)):
        assert np.array_equal(truth.masks.decode(k, 2), numbers(2, 2) == number)
    other = data.ground_truth("film")
    assert other is not None and other.annotated.all() and other.masks.area().tolist() == [[4, 4, 4]]


def test_texts_alone_are_no_ground_truth(root: Path) -> None:
    data = Plain(root, "test")
    assert not data.has_ground_truth and data.ground_truth("a b") is None
    assert [(e.expression_id, e.text, e.targets) for e in data.expressions("film")] == [
        ("0", "the square", None),
        ("1", "it", None),
    ]


def test_a_root_without_splits_is_one(root: Path) -> None:
    folder = root / "train"
    assert Plain.splits(folder) == ["all"]
    data = Plain(folder, "all")
    assert data.video_ids() == ("a b", "film") and data.has_ground_truth
    assert list(data.check()) == []
    with pytest.raises(InputError, match=r"no split 'train'.*splits of .*: all;"):
        Plain(folder, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: shutil.rmtree(r / "train/masks"), 'masks for the "objects" of expressions, so the split has no ground truth'),
        (
            lambda r: shutil.copytree(r / "train/masks", r / "test/masks"),
            'no expression has "objects", so the split has no ground truth',
        ),
    ],
)
def test_masks_or_objects_alone_are_no_ground_truth(root: Path, change: Callable[[Path], object], message: str) -> None:
    change(root)
    data = Plain(root, "test" if "no expression" in message else "train")
    assert not data.has_ground_truth
    assert {e.targets for v in data.video_ids() for e in data.expressions(v)} == {None}
    with pytest.warns(UserWarning, match=message):
        assert list(data.check()) == []


def test_a_video_without_targets_needs_no_mask(root: Path) -> None:
    lists(root, lambda v: v.update({"film": [{"text": "a dog", "objects": []}]}))
    shutil.rmtree(root / "train/masks/film")
    data = Plain(root, "train")
    truth = data.ground_truth("film")
    assert truth is not None and truth.masks.shape == (0, 3) and truth.annotated.all()
    assert list(data.check()) == []


@pytest.mark.parametrize("what", ["train", "train/videos", "train/videos/a b", "train/videos/film.mp4", "train/masks/film"])
def test_reached_by_a_link(root: Path, tmp_path_factory: pytest.TempPathFactory, what: str) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(root / what, elsewhere)
    (root / what).symlink_to(elsewhere)
    data = Plain(root, "train")
    assert list(data.check()) == []
    assert data.ground_truth("film") is not None


def lists(root: Path, change: Callable[[Any], object]) -> None:
    path = root / "train/expressions.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first(root: Path, change: Callable[[Any], object]) -> None:
    """Change the first expression of video "a b"."""
    lists(root, lambda v: change(v["a b"]["x"]))


def frame(root: Path, name: str) -> Path:
    return root / "train/videos/a b" / name


def mask(root: Path, name: str = "2") -> Path:
    return root / f"train/masks/a b/{name}.png"


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
    "mask of an unknown object": (lambda r: lists(r, lambda v: [v["a b"].pop("x"), v["a b"].pop("z")]), "2.png: has object 1"),
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


def test_two_splits_named_all(root: Path) -> None:
    (root / "train").rename(root / "all")
    assert Plain(root, "all").has_ground_truth
    (root / "expressions.json").write_text('{"a b": ["x"]}')
    with pytest.raises(InputError, match="both are split 'all'"):
        Plain(root, "all")


def test_extraction_to_scores(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the README accept the user's own data; frames without a PNG are not scored."""
    at = ("--dataset", "plain", "--root", root, "--split", "train")
    cache = tmp_path / "c.zarr"
    assert call(monkeypatch, None, "extract", *at, "--out", cache)[0] == 0
    assert call(monkeypatch, None, "oracle", "--cache", cache, "--json", tmp_path / "o.json")[0] == 0
