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
from film_fixtures import write_film
from odd_videos import call
from PIL import Image
from test_ref_youtube_vos import cut, numbers, white_is_0, write_png

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.plain import Plain
from rvos_cache.errors import InputError
from rvos_cache.media.frames import VideoWriter

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


def test_objects_that_no_expression_names_are_no_fault(root: Path) -> None:
    """Extraction takes them too: they are what a sentence may not select."""
    lists(root, lambda videos: [videos["a b"].pop("x"), videos["a b"].pop("z")])
    assert not list(Plain(root, "train").check())


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


@pytest.mark.parametrize("ending", ["MP4", "mov", "m4v", "MKV", "webm", "avi"])
def test_films_have_any_usual_ending(root: Path, ending: str) -> None:
    film = root / "train/videos/film.mp4"
    codec, container = {"webm": ("libvpx-vp9", "webm"), "avi": ("mpeg4", "avi")}.get(ending, ("libx264", "mp4"))
    film.unlink()
    write_film(film.with_suffix(f".{ending}"), [np.full((*SIZE, 3), level, np.uint8) for level in (20, 80, 140)], 25, codec,
               container=container)  # fmt: skip
    data = Plain(root, "train")
    assert list(data.check()) == []
    video = data.video("film")
    assert (len(video), video.size, video.rate) == (3, SIZE, 25)
    assert [round(float(video.read(t).mean()), -1) for t in range(3)] == [20, 80, 140]


def number_from_1(root: Path) -> None:
    """Masks of a film as `ffmpeg -i film.mp4 %05d.png` names its frames."""
    folder = root / "train/masks/film"
    for t in (2, 1, 0):
        (folder / f"{t:05d}.png").rename(folder / f"{t + 1:05d}.png")


def test_masks_numbered_from_1_beside_a_film_are_refused(root: Path) -> None:
    number_from_1(root)
    message = f"{root / 'train/masks/film'}: 1 masks belong to no frame, 00003.png first; name them as the frames, 00000 to 00002"
    data = Plain(root, "train")
    with pytest.raises(InputError, match=message):
        data.ground_truth("film")
    assert list(data.check()) == [message]
    assert data.ground_truth("a b") is not None


def turn_frames(root: Path, number: int) -> None:
    """Frames of "a b" with an EXIF tag, of which the first is stored with a dark corner."""
    tag = Image.Exif()
    tag[0x0112] = number
    for name in NAMES:
        frame(root, f"{name}.{'png' if name != '2' else 'jpg'}").unlink()
        pixels = np.full((*SIZE, 3), 200, np.uint8)
        pixels[:4, :4] = 20
        Image.fromarray(pixels).save(frame(root, f"{name}.jpg"), exif=tag)


def test_photographs_are_upright_and_their_masks_must_be(root: Path) -> None:
    turn_frames(root, 6)
    for name, t in (("2", 0), ("10", 2)):
        write_png(mask(root, name), np.rot90(numbers(2, t), -1))
    data = Plain(root, "train")
    with pytest.warns(UserWarning, match=r"a b/2\.jpg: this and other frames have an EXIF tag, by which they are turned"):
        assert list(data.check()) == []
    video = data.video("a b")
    assert video.size == SIZE[::-1]
    # A turn to the right brings the top left to the top right.
    assert video.read(0)[:4, -4:].mean() < 40 and video.read(0)[:4, :4].mean() > 180
    truth = data.ground_truth("a b")
    assert truth is not None and np.array_equal(truth.masks.decode(0, 0), np.rot90(numbers(2, 0) == 1, -1))


def test_masks_of_the_stored_photograph_are_refused(root: Path) -> None:
    turn_frames(root, 6)
    data = Plain(root, "train")
    message = r"2\.png: \(8, 12\) pixels \(height, width\), its frame has \(12, 8\)"
    with pytest.raises(InputError, match=message), pytest.warns(UserWarning, match="by which they are turned"):
        data.ground_truth("a b")


def test_masks_of_photographs_turned_by_180_degrees_are_told(root: Path) -> None:
    """Their size is that of the stored and of the shown frame."""
    turn_frames(root, 3)
    with pytest.warns(UserWarning, match="so the masks must be drawn on the turned frames"):
        truth = Plain(root, "train").ground_truth("a b")
    assert truth is not None and truth.masks.size == SIZE


def test_frames_in_no_known_order_are_told(root: Path) -> None:
    frame(root, "9.png").rename(frame(root, "then.png"))
    data = Plain(root, "train")
    with pytest.warns(UserWarning, match="a b: the frames are read in the order then, 2, 10, but 'then' and '2' differ in more"):
        assert list(data.check()) == []


def test_extraction_to_scores(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the README accept the user's own data; frames without a PNG are not scored."""
    at = ("--dataset", "plain", "--root", root, "--split", "train")
    cache = tmp_path / "c.zarr"
    assert call(monkeypatch, None, "extract", *at, "--out", cache)[0] == 0
    assert call(monkeypatch, None, "oracle", "--cache", cache, "--json", tmp_path / "o.json")[0] == 0
