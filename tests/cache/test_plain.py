"""The user's own videos: folders and mp4 files, and when a split has ground truth."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from film_fixtures import write_film
from odd_videos import call
from PIL import Image
from plain_files import NAMES, SIZE, frame, lists, mask, number_from_1, write_plain
from youtube_files import numbers, write_png

from rvos_cache.datasets import open_dataset
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


def test_objects_that_no_expression_names_are_no_fault(root: Path) -> None:
    """Extraction takes them too: they are what a sentence may not select."""
    lists(root, lambda videos: [videos["a b"].pop("x"), videos["a b"].pop("z")])
    assert not list(Plain(root, "train").check())


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
