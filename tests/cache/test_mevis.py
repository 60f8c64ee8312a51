"""The MeViS dataset: what it reads, and one error line that names the file for every fault."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_videos import call
from PIL import Image
from pycocotools import mask as coco

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.mevis import Mevis
from rvos_cache.errors import InputError

SIZE = (6, 8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two videos of three frames; object 7 is a 2x2 square, absent in the last frame."""
    square = np.zeros(SIZE, np.uint8, order="F")
    square[1:3, 2:4] = 1
    rle = coco.encode(square)
    mask = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    videos: dict[str, Any] = {}
    for video in ("a", "b"):
        folder = tmp_path / "valid_u/JPEGImages" / video
        folder.mkdir(parents=True)
        for frame in ("00000", "00001", "00002"):
            Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / f"{frame}.jpg")
        expressions = {"0": {"exp": "the square", "anno_id": [7 if video == "a" else 8]}, "1": {"exp": "nothing", "anno_id": []}}
        videos[video] = {"expressions": expressions, "frames": ["00000", "00001", "00002"]}
    (tmp_path / "valid_u/meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (tmp_path / "valid_u/mask_dict.json").write_text(json.dumps({"7": [mask, mask, None], "8": [mask] * 3}))
    return tmp_path


def test_reads_the_annotations(root: Path) -> None:
    data = open_dataset("mevis", root, "valid_u")
    assert data.video_ids() == ("a", "b")
    assert [e.targets for e in data.expressions("a")] == [("7",), ()]
    truth = data.ground_truth("a")
    assert truth is not None
    assert truth.object_ids == ("7",)
    assert truth.masks.area().tolist() == [[4, 4, 0]]
    assert truth.masks.decode(0, 0)[1:3, 2:4].all()
    assert data.video("b").read(2).shape == (*SIZE, 3)
    assert list(data.check()) == []


def test_a_split_that_is_not_there_names_those_that_are(root: Path) -> None:
    """Also one of another name, such as valid_p of moving shapes, which `splits` leaves out; and a folder that is not there."""
    (root / "valid_p").mkdir()
    shutil.copy(root / "valid_u/meta_expressions.json", root / "valid_p")
    (root / "valid_p/JPEGImages").symlink_to(root / "valid_u/JPEGImages")
    with pytest.raises(InputError, match="not found; splits of .*: valid_u, valid_p; give another --root or --split$"):
        open_dataset("mevis", root, "train")
    assert Mevis.splits(root) == ["valid_u"]
    with pytest.raises(InputError, match=f"^{root}/gone: no such folder; give another --root$"):
        open_dataset("mevis", root / "gone", "train")


def test_a_split_without_masks_has_no_ground_truth(root: Path) -> None:
    (root / "valid_u/mask_dict.json").unlink()
    (root / "valid_u").rename(root / "valid")
    data = Mevis(root, "valid")
    assert not data.has_ground_truth
    assert data.ground_truth("a") is None
    assert [e.targets for e in data.expressions("a")] == [None, None]


def edited(root: Path, name: str, change: Callable[[Any], object]) -> None:
    path = root / "valid_u" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def meta(root: Path, change: Callable[[Any], object]) -> None:
    edited(root, "meta_expressions.json", lambda content: change(content["videos"]))


def copy_frame(root: Path, name: str, to: str) -> None:
    folder = root / "valid_u/JPEGImages/a"
    shutil.copy(folder / name, folder / to)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing frame": (lambda r: (r / "valid_u/JPEGImages/a/00001.jpg").unlink(), "a/00001.jpg"),
    "truncated frame": (
        lambda r: (r / "valid_u/JPEGImages/a/00002.jpg").write_bytes((r / "valid_u/JPEGImages/a/00002.jpg").read_bytes()[:-40]),
        "a/00002.jpg",
    ),
    "frame of another size": (
        lambda r: Image.new("RGB", (5, 5)).save(r / "valid_u/JPEGImages/a/00001.jpg"),
        "a/00001.jpg",
    ),
    "no folder": (lambda r: shutil.rmtree(r / "valid_u/JPEGImages/a"), "JPEGImages/a"),
    "mask list too short": (lambda r: edited(r, "mask_dict.json", lambda m: m["7"].pop()), "object 7"),
    "mask of another size": (
        lambda r: edited(r, "mask_dict.json", lambda m: m["7"][0].update(size=[8, 6])),
        "frame 00000",
    ),
    "damaged runs": (
        lambda r: edited(r, "mask_dict.json", lambda m: m["7"][1].update(counts="zz")),
        "frame 00001",
    ),
    "unknown object": (lambda r: meta(r, lambda v: v["a"]["expressions"]["0"].update(anno_id=[99])), "object 99"),
    "empty sentence": (lambda r: meta(r, lambda v: v["a"]["expressions"]["0"].update(exp="  ")), "expression 0"),
    "id that leaves the folder": (lambda r: meta(r, lambda v: v.update({"../x": v["a"]})), "'../x'"),
    "frame that leaves the folder": (lambda r: meta(r, lambda v: v["a"].update(frames=["../../b/00000"])), "'../../b/00000'"),
    "masks missing": (lambda r: (r / "valid_u/mask_dict.json").unlink(), "mask_dict.json"),
    "broken masks": (lambda r: (r / "valid_u/mask_dict.json").write_text('{"7": ['), "mask_dict.json, line 1, column 8"),
    "too deep": (lambda r: (r / "valid_u/mask_dict.json").write_text("[" * 100_000), "mask_dict.json"),
    "unlisted frame": (lambda r: copy_frame(r, "00000.jpg", "00003.jpg"), "1 of its frames are not listed, 00003.jpg first"),
    "frame listed twice": (lambda r: meta(r, lambda v: v["a"]["frames"].append("00001")), "frame 00001 is listed twice"),
    "frame as two files": (lambda r: copy_frame(r, "00001.jpg", "00001.png"), "00001.jpg and 00001.png"),
    "no list of frames": (lambda r: meta(r, lambda v: v["a"].pop("frames")), '"frames" must be'),
    "no expressions": (lambda r: meta(r, lambda v: v["a"].pop("expressions")), '"expressions" must be'),
    "mask as text": (lambda r: edited(r, "mask_dict.json", lambda m: m["7"].__setitem__(1, "zz")), "00001: a mask is COCO RLE"),
    "mask without counts": (
        lambda r: edited(r, "mask_dict.json", lambda m: m["7"][1].pop("counts")),
        "00001: a mask is COCO RLE",
    ),
    "counts of null": (lambda r: edited(r, "mask_dict.json", lambda m: m["7"][1].update(counts=None)), "frame 00001"),
    "counts of printed bytes": (
        lambda r: edited(r, "mask_dict.json", lambda m: m["7"][1].update(counts=str(m["7"][1]["counts"].encode()))),
        "frame 00001: the mask's counts are bytes as Python prints them",
    ),
    "counts that are too few": (lambda r: edited(r, "mask_dict.json", lambda m: m["7"][1].update(counts=[3, 4])), "frame 00001"),
    "size of null": (lambda r: edited(r, "mask_dict.json", lambda m: m["7"][1].update(size=None)), "frame 00001"),
    "null for an object": (lambda r: edited(r, "mask_dict.json", lambda m: m.update({"7": None})), "NoneType masks for 3 frames"),
    "objects of null": (lambda r: meta(r, lambda v: v["a"]["expressions"]["0"].update(anno_id=None)), '"anno_id" must be'),
    "an object of null": (
        lambda r: meta(r, lambda v: v["a"]["expressions"]["0"].update(anno_id=[None])),
        "object None is not in",
    ),
    "expression of null": (lambda r: meta(r, lambda v: v["a"]["expressions"].update({"0": None})), 'expected {"exp": text}'),
    "video of null": (lambda r: meta(r, lambda v: v.update(a=None)), "no video 'a'"),
    "frames of null": (lambda r: meta(r, lambda v: v["a"].update(frames=[None])), '"frames" must be'),
    "expression that leaves the folder": (
        lambda r: meta(r, lambda v: v["a"]["expressions"].update({"..": v["a"]["expressions"].pop("0")})),
        "'..'",
    ),
    "half a character": (lambda r: meta(r, lambda v: v["a"]["expressions"]["0"].update(exp="a \ud83d")), "half a character"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_check_names_the_fault(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    faults = list(Mevis(root, "valid_u").check())
    assert len(faults) >= 1
    assert any(named in line for line in faults), faults
    assert all("\n" not in line for line in faults)


def test_check_names_all_faults_of_a_video(root: Path) -> None:
    """Faults of the first frame and of an expression do not hide those of other frames and masks."""
    for name in ("00000", "00002"):
        (root / f"valid_u/JPEGImages/a/{name}.jpg").unlink()
    meta(root, lambda v: v["a"]["expressions"]["0"].update(exp=""))
    edited(root, "mask_dict.json", lambda m: [m["7"][t].update(counts="zz") for t in (0, 1)])
    faults = list(Mevis(root, "valid_u").check())
    expected = ["expression 0: the text is empty", "a/00000.jpg", "a/00002.jpg", "video a, frame 00000", "video a, frame 00001"]
    assert len(faults) == len(expected)
    assert all(part in line for part, line in zip(expected, faults)), faults


def test_check_counts_mask_faults_past_a_number(root: Path) -> None:
    (root / "valid_u/JPEGImages/b").rename(root / "spare")
    folder = root / "valid_u/JPEGImages/b"
    folder.mkdir()
    names = [f"{t:05d}" for t in range(23)]
    for name in names:
        shutil.copy(root / "spare/00000.jpg", folder / f"{name}.jpg")
    meta(root, lambda v: v["b"].update(frames=names))
    edited(root, "mask_dict.json", lambda m: m.update({"8": [{"size": [6, 8], "counts": "zz"}] * 23}))
    faults = list(Mevis(root, "valid_u").check())
    assert len(faults) == 21
    assert faults[-1].endswith("video b: 3 more faults of masks")


def test_a_key_that_occurs_twice_is_a_fault(root: Path) -> None:
    path = root / "valid_u/meta_expressions.json"
    path.write_text(path.read_text().replace('"b": {', '"a": {'))
    assert ["'a' occurs twice" in line for line in Mevis(root, "valid_u").check()] == [True]
    with pytest.raises(InputError, match="'a' occurs twice in one object, and the first value is lost"):
        Mevis(root, "valid_u").video_ids()


def test_the_check_command_counts_a_key_that_occurs_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "valid_u/meta_expressions.json"
    path.write_text(path.read_text().replace('"b": {', '"a": {'))
    code, stderr = call(monkeypatch, capsys, "check", "--dataset", "mevis", "--root", root, "--split", "valid_u")
    assert code == 1 and f"{root}, split valid_u: faults found: " in stderr and "occurs twice" not in stderr


def test_one_damaged_video_does_not_affect_the_other(root: Path) -> None:
    meta(root, lambda v: v["a"]["expressions"]["0"].update(exp=""))
    data = Mevis(root, "valid_u")
    with pytest.raises(InputError, match="text is empty"):
        data.expressions("a")
    assert len(data.expressions("b")) == 2


def test_malformed_json_names_its_line(root: Path) -> None:
    (root / "valid_u/meta_expressions.json").write_text('{"videos":\n oops}')
    with pytest.raises(InputError, match="meta_expressions.json, line 2"):
        Mevis(root, "valid_u")


def test_masks_follow_the_names_of_frames_whatever_the_list(root: Path) -> None:
    """As in MeViS's own loader, which sorts the frames; they need not be contiguous."""
    folder = root / "valid_u/JPEGImages/a"
    for old, new in (("00001", "00007"), ("00002", "00015")):
        (folder / f"{old}.jpg").rename(folder / f"{new}.jpg")
    meta(root, lambda v: v["a"].update(frames=["00015", "00000", "00007"]))
    data = Mevis(root, "valid_u")
    truth = data.ground_truth("a")
    assert truth is not None
    assert data.video("a").frame_names == ("00000", "00007", "00015")
    assert truth.masks.area().tolist() == [[4, 4, 0]]
    assert list(data.check()) == []


def rename_frames(root: Path, names: list[str], listed: list[str]) -> None:
    """names: of the frames of video a, in their true order, in which its masks are; listed: the same in the order of the list."""
    folder = root / "valid_u/JPEGImages/a"
    for old, new in zip(("00000", "00001", "00002"), names):
        (folder / f"{old}.jpg").rename(folder / f"{new}.jpg")
    meta(root, lambda v: v["a"].update(frames=listed))


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["shot1_9", "shot1_10", "shot2_3"], ["shot1_9", "shot1_10", "shot2_3"]),
        (["8", "9", "10"], ["8", "9", "10"]),
        (["a", "b", "c"], ["a", "b", "c"]),
        (["08", "09", "10"], ["10", "08", "09"]),
    ],
)
def test_frames_are_in_the_order_of_their_masks(root: Path, names: list[str], listed: list[str]) -> None:
    rename_frames(root, names, listed)
    data = Mevis(root, "valid_u")
    assert data.video("a").frame_names == tuple(names)
    truth = data.ground_truth("a")
    assert truth is not None and truth.masks.area().tolist() == [[4, 4, 0]]
    assert list(data.check()) == []


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["10", "8", "9"], "sorted as text 10 comes earlier, so which mask of mask_dict.json is whose is unknown"),
        (["9", "8", "10"], "sorted as text 10 comes earlier"),
        (["c", "a", "b"], "the order of the frames is unknown: they are not listed by name, and 'a' and 'b' differ in more than"),
    ],
)
def test_an_order_that_parts_frames_and_masks_is_refused(root: Path, listed: list[str], message: str) -> None:
    rename_frames(root, sorted(listed), listed)
    data = Mevis(root, "valid_u")
    for step in (data.video, data.ground_truth):
        with pytest.raises(InputError, match=message) as error:
            step("a")
        assert f"{root / 'valid_u/meta_expressions.json'}, video a: " in str(error.value)
    assert [message in line for line in data.check()] == [True]
    assert data.ground_truth("b") is not None


def test_frames_without_masks_have_the_order_of_their_numbers(root: Path) -> None:
    (root / "valid_u/mask_dict.json").unlink()
    rename_frames(root, ["8", "9", "10"], ["10", "8", "9"])
    (root / "valid_u").rename(root / "valid")
    assert Mevis(root, "valid").video("a").frame_names == ("8", "9", "10")


def test_photographs_stay_as_their_masks(root: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(root / "valid_u/JPEGImages/a/00000.jpg", exif=tag, quality=100)
    data = Mevis(root, "valid_u")
    with pytest.warns(UserWarning, match="JPEGImages/a: its frames have an EXIF tag that turns them; they are read unturned"):
        video = data.video("a")
    with Image.open(root / "valid_u/JPEGImages/a/00000.jpg") as image:
        assert np.array_equal(video.read(0), np.asarray(image))
    assert data.ground_truth("a") is not None and list(data.check()) == []


@pytest.mark.parametrize("what", ["valid_u", "valid_u/JPEGImages", "valid_u/JPEGImages/a", "valid_u/mask_dict.json"])
def test_reached_by_a_link(root: Path, tmp_path_factory: pytest.TempPathFactory, what: str) -> None:
    """Ids are checked as text. Links may lead out of the root."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(root / what, elsewhere)
    (root / what).symlink_to(elsewhere)
    data = Mevis(root, "valid_u")
    assert list(data.check()) == []
    assert data.video("a").read(2).shape == (*SIZE, 3)


def second_version(root: Path) -> None:
    """Change the split to MeViSv2's layout: another name of the list, expressions with audio, and one without a target."""
    entry = {"exp": "a bird", "obj_id": [], "anno_id": [], "audio": "audio/a/2.wav"}
    meta(root, lambda v: [v["a"]["expressions"]["0"].update(audio="audio/a/0.wav"), v["a"]["expressions"].update({"2": entry})])
    (root / "valid_u/meta_expressions.json").rename(root / "valid_u/meta_expressions_v2.json")


def test_the_second_version(root: Path) -> None:
    second_version(root)
    assert Mevis.splits(root) == ["valid_u"]
    with pytest.warns(UserWarning, match=r'meta_expressions_v2.json: "audio" of 2 expressions is ignored') as caught:
        data = Mevis(root, "valid_u")
    assert len(caught) == 1
    assert [e.targets for e in data.expressions("a")] == [("7",), (), ()]
    truth = data.ground_truth("a")
    assert truth is not None and truth.object_ids == ("7",)
    assert not truth.masks.union(truth.indices(())).area().any()
    assert list(data.check()) == []


HASHED = ("--encoder", "hashed")


@pytest.mark.parametrize(
    "words", [("check",), ("extract-text", *HASHED, "--out", "t.zarr"), ("extract-all", *HASHED)], ids=lambda words: words[0]
)
def test_audio_is_one_warning_and_no_fault(
    root: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if a split is opened for its tracks and again for its words, and other code changes the warning filters in between."""
    second_version(root)
    monkeypatch.chdir(root)
    warnings.simplefilter("always")
    status, stderr = call(monkeypatch, capsys, *words, "--dataset", "mevis", "--root", root, "--split", "valid_u")
    assert status == 0
    assert stderr.startswith("warning: ") and stderr.endswith("is read") and "\n" not in stderr


def test_a_video_without_targets(root: Path) -> None:
    meta(root, lambda v: v["a"].update(expressions={"0": {"exp": "a bird", "anno_id": [], "obj_id": []}}))
    data = Mevis(root, "valid_u")
    truth = data.ground_truth("a")
    assert truth is not None
    assert truth.masks.shape == (0, 3) and truth.annotated.all()
    assert truth.masks.union([]).area().tolist() == [[0, 0, 0]]
    assert list(data.check()) == []


def test_two_lists_of_one_split(root: Path) -> None:
    shutil.copy(root / "valid_u/meta_expressions.json", root / "valid_u/meta_expressions_v2.json")
    with pytest.raises(InputError, match="meta_expressions.json and .*meta_expressions_v2.json: two lists"):
        Mevis(root, "valid_u")


@pytest.mark.parametrize("split", ["..", "valid_u/../valid_u", "/", ""])
def test_a_split_that_leaves_the_root(root: Path, split: str) -> None:
    with pytest.raises(InputError, match="cannot name a folder"):
        Mevis(root, split)


def test_real_videos(real_data: Path) -> None:
    """Counts of the published files, computed from the JSON itself."""
    root = real_data / "mevis-davis"
    data = Mevis(root, "valid_u")
    raw = json.loads((root / "valid_u/meta_expressions.json").read_text())["videos"]
    assert [len(data.expressions(v)) for v in data.video_ids()] == [len(entry["expressions"]) for entry in raw.values()]
    masks = json.loads((root / "valid_u/mask_dict.json").read_text())
    truth = data.ground_truth("dog")
    assert truth is not None
    expected = [0 if m is None else int(coco.area(m)) for m in masks[truth.object_ids[0]]]
    assert truth.masks.area()[0].tolist() == expected


def test_frames_on_another_disk_are_a_split_s_own_and_those_of_another_split_are_not(root: Path, tmp_path: Path) -> None:
    (root / "valid_u/JPEGImages").rename(tmp_path / "disk")
    (root / "valid_u/JPEGImages").symlink_to(tmp_path / "disk")
    shutil.copytree(root / "valid_u", root / "other", ignore=shutil.ignore_patterns("JPEGImages"))
    (root / "other/JPEGImages").symlink_to("../valid_u/JPEGImages")
    assert "valid_u" in Mevis.splits(root)
    # A link to a link leads to the disk, beside no split: then both are taken.
    (root / "valid_u/JPEGImages").unlink()
    (tmp_path / "disk").rename(root / "valid_u/JPEGImages")
    assert "valid_u" in Mevis.splits(root) and "other" not in Mevis.splits(root)
    assert list(Mevis(root, "other").check()) == list(Mevis(root, "valid_u").check())
