"""What every dataset promises, checked on a small one of each kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import get_args

import cv2
import numpy as np
import pytest
from film_fixtures import quarters, write_film
from odd_videos import call
from PIL import Image
from plain_files import write_plain
from test_a2d_sentences import write_a2d
from test_jhmdb_sentences import write_jhmdb
from test_ref_davis17 import write_davis
from test_refcoco import write_refcoco
from youtube_files import write_youtube

from rvos_cache.datasets import DATASETS, Dataset, Protocol, dataset_class, open_dataset
from rvos_cache.errors import InputError
from rvos_cache.media.frames import file_video
from rvos_cache.shapes import write_shapes
from rvos_cache.types import check_id

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Sample:
    """A small copy of a dataset. shown, hidden: splits with and without ground truth (None: all have it); frames: the folder
    of the frames."""

    root: Path
    shown: str
    hidden: str | None
    frames: Path


def mevis(root: Path) -> Sample:
    write_shapes(root, 3, 0)
    shutil.copytree(root / "valid_u", root / "valid")
    (root / "valid/mask_dict.json").unlink()
    meta = root / "valid/meta_expressions.json"
    content = json.loads(meta.read_text())
    for video in content["videos"].values():
        video["expressions"] = {i: {"exp": e["exp"]} for i, e in video["expressions"].items()}
    meta.write_text(json.dumps(content))
    return Sample(root, "train", "valid", root / "train/JPEGImages")


def a2d_sentences(root: Path) -> Sample:
    write_a2d(root)
    return Sample(root, "train", None, root / "Release/clips320H")


def ref_davis17(root: Path) -> Sample:
    write_davis(root)
    return Sample(root, "valid", None, root / "valid/JPEGImages")


def ref_youtube_vos(root: Path) -> Sample:
    write_youtube(root)
    return Sample(root, "train", "valid", root / "train/JPEGImages")


def jhmdb_sentences(root: Path) -> Sample:
    write_jhmdb(root)
    return Sample(root, "test", None, root / "Rename_Images")


def plain(root: Path) -> Sample:
    write_plain(root)
    return Sample(root, "train", "test", root / "train/videos")


def refcoco(name: str) -> Callable[[Path], Sample]:
    def write(root: Path) -> Sample:
        write_refcoco(root, name)
        return Sample(root, "train", None, root / "train2014")

    return write


# Dataset -> the function that writes a small copy of it. Every entry of DATASETS needs one.
SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "a2d-sentences": a2d_sentences,
    "jhmdb-sentences": jhmdb_sentences,
    "mevis": mevis,
    "plain": plain,
    "ref-davis17": ref_davis17,
    "ref-youtube-vos": ref_youtube_vos,
    **{name: refcoco(name) for name in ("refcoco", "refcoco+", "refcocog")},
}


@pytest.fixture(scope="module", params=sorted(DATASETS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def sample(name: str, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return SAMPLES[name](tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def data(name: str, sample: Sample) -> Dataset:
    return open_dataset(name, sample.root, sample.shown)


def test_splits_are_listed_and_others_are_an_error(name: str, sample: Sample, data: Dataset) -> None:
    assert {sample.shown, sample.hidden} - {None} <= set(type(data).splits(sample.root))
    assert (data.root, data.split) == (sample.root, sample.shown)
    with pytest.raises(InputError) as error:
        open_dataset(name, sample.root, "nothing-like-it")
    assert sample.shown in str(error.value) and "\n" not in str(error.value)


def test_an_undamaged_split_has_no_fault(data: Dataset) -> None:
    assert list(data.check()) == []


def test_the_check_command_agrees(name: str, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in {sample.shown, sample.hidden} - {None}:
        assert call(monkeypatch, None, "check", "--dataset", name, "--root", sample.root, "--split", split)[0] == 0


def test_reading_a_video_again_gives_the_same_frames(data: Dataset) -> None:
    ids = data.video_ids()
    assert isinstance(ids, tuple) and len(ids) >= 2 and len(set(ids)) == len(ids)
    for video_id in ids:
        check_id(video_id, "test")
        video = data.video(video_id)
        assert video.video_id == video_id
        assert all(check_id(frame, "test") for frame in video.frame_names)
        last = len(video) - 1
        one, first, two = video.read(last), video.read(0), data.video(video_id).read(last)
        assert one.shape == first.shape == (*video.size, 3) and one.dtype == np.uint8
        assert np.array_equal(one, two) and (last == 0 or not np.array_equal(one, first))


def turn_files(folder: Path) -> None:
    """Every picture becomes noise, and every film four colours, with a tag that asks for a turn by 180 degrees."""
    tag, rng = Image.Exif(), np.random.default_rng(0)
    tag[0x0112] = 3
    for path in sorted(p for p in folder.rglob("*.*") if p.is_file()):
        if path.suffix == ".mp4":
            film = file_video(path, "film")
            write_film(path, [quarters(film.size)] * len(film), matrix=(-1 << 16, 0, 0, -1 << 16))
            continue
        with Image.open(path) as image:
            noise = rng.integers(0, 256, (image.height, image.width, 3), np.uint8)
        Image.fromarray(noise).save(path, exif=tag)


@pytest.mark.filterwarnings("ignore:.*EXIF tag")
def test_only_videos_of_the_users_own_are_turned(name: str, sample: Sample, tmp_path: Path) -> None:
    """Against OpenCV without and with its own turning: masks of the benchmarks belong to the stored pixels."""
    root = tmp_path / "data"
    shutil.copytree(sample.root, root)
    folder = root / sample.frames.relative_to(sample.root)
    turn_files(folder)
    data = open_dataset(name, root, sample.shown)
    assert data.upright == (name == "plain")
    for video_id in data.video_ids():
        video, film = data.video(video_id), folder / f"{video_id}.mp4"
        if film.exists():
            capture = cv2.VideoCapture(str(film))
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, int(data.upright))
            expected = capture.read()[1][..., ::-1]
        else:
            # The frame of a folder, or the image of RefCOCO.
            names = (
                p
                for stem in (video.frame_names[0], video_id)
                for p in folder.rglob(f"{stem}.*")
                if video_id in (p.stem, p.parent.name)
            )
            expected = cv2.imread(str(next(names)), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION * (not data.upright))[
                ..., ::-1
            ]
        frame = video.read(0).astype(int)
        assert np.median(np.abs(frame - expected)) <= 2
        assert np.median(np.abs(frame - expected[::-1, ::-1])) > 10


def test_expressions_name_objects_that_are_annotated(data: Dataset) -> None:
    assert data.has_ground_truth
    object_ids: list[str] = []
    for video_id in data.video_ids():
        expressions, video, truth = data.expressions(video_id), data.video(video_id), data.ground_truth(video_id)
        assert truth is not None
        assert truth.masks.shape[1] == len(video) and truth.masks.size == video.size
        assert truth.annotated.any()
        assert (truth.masks.area().sum(1) > 0).all()
        assert {e.video_id for e in expressions} == {video_id}
        assert len({e.expression_id for e in expressions}) == len(expressions) > 0
        for expression in expressions:
            assert expression.targets is not None
            assert truth.masks.union(truth.indices(expression.targets)).shape == (1, len(video))
        object_ids += truth.object_ids
    assert len(set(object_ids)) == len(object_ids), "an object id is unique in its split"


def test_one_object_means_one_target_per_expression(data: Dataset) -> None:
    """Moving shapes, in MeViS's layout, have expressions with no target and with several."""
    counts = {len(e.targets or ()) for v in data.video_ids() for e in data.expressions(v)}
    assert data.one_object == (counts == {1}) or data.name == "plain"


def test_a_split_without_ground_truth(name: str, sample: Sample) -> None:
    if sample.hidden is None:
        splits = type(open_dataset(name, sample.root, sample.shown)).splits(sample.root)
        assert splits and all(open_dataset(name, sample.root, split).has_ground_truth for split in splits)
        return
    data = open_dataset(name, sample.root, sample.hidden)
    video_id = data.video_ids()[0]
    assert not data.has_ground_truth
    assert data.ground_truth(video_id) is None
    assert {e.targets for e in data.expressions(video_id)} == {None}
    assert list(data.check()) == []


@pytest.mark.parametrize("lost", ["nothing-like-it", "..", "a/b", ""])
def test_a_video_that_is_not_listed(data: Dataset, lost: str) -> None:
    for step in (data.video, data.expressions, data.ground_truth):
        with pytest.raises(InputError) as error:
            step(lost)
        assert repr(lost) in str(error.value)


@pytest.mark.parametrize("shape", ["..", "{0}/..", "x/../{0}", "../{1}/{0}", "/", ""])
def test_a_split_that_leaves_the_root(name: str, sample: Sample, shape: str) -> None:
    with pytest.raises(InputError) as error:
        open_dataset(name, sample.root, shape.format(sample.shown, sample.root.name))
    assert "\n" not in str(error.value)


def test_folders_reached_by_a_link(name: str, sample: Sample, tmp_path: Path) -> None:
    """Ids are checked as text. Links may lead out of the root."""
    root = tmp_path / "copy"
    shutil.copytree(sample.root, root)
    frames = root / sample.frames.relative_to(sample.root)
    frames.rename(tmp_path / "elsewhere")
    frames.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list(open_dataset(name, root, sample.shown).check()) == []


def test_expressions_are_read_without_frames(name: str, sample: Sample, tmp_path: Path) -> None:
    """A split is listed and its expressions are read without frames; reading a frame names the missing folder."""
    shutil.copytree(sample.root, tmp_path / "copy")
    frames = tmp_path / "copy" / sample.frames.relative_to(sample.root)
    shutil.rmtree(frames)
    data = open_dataset(name, tmp_path / "copy", sample.shown)
    video_id = data.video_ids()[0]
    assert data.expressions(video_id)
    with pytest.raises(InputError) as error:
        data.video(video_id)
    assert str(frames) in str(error.value)
    assert len(list(data.check())) >= len(data.video_ids())


@pytest.mark.parametrize("name", ["mevis", "plain", "ref-davis17", "ref-youtube-vos"], indirect=True)
def test_frame_names_need_not_be_contiguous(name: str, sample: Sample, data: Dataset, tmp_path: Path) -> None:
    """They are not in 19 of the 507 videos of Ref-YouTube-VOS's valid. A mask belongs to the frame of its name."""
    root = Path(shutil.copytree(sample.root, tmp_path / "copy"))
    names = {frame for video_id in data.video_ids() for frame in data.video(video_id).frame_names}
    last = max((frame for frame in names if list(sample.frames.glob(f"*/{frame}.*"))), key=lambda frame: (len(frame), frame))
    for path in [p for p in root.rglob(f"{last}.*") if p.parent.name != "film"]:
        path.rename(path.with_name(f"97{last[2:]}{path.suffix}"))
    for path in root.rglob("*.json"):
        path.write_text(path.read_text().replace(f'"{last}"', f'"97{last[2:]}"'))
    other, renamed = open_dataset(name, root, sample.shown), 0
    assert list(other.check()) == []
    for video_id in data.video_ids():
        before, after = data.video(video_id), other.video(video_id)
        renamed += last in before.frame_names
        assert after.frame_names == tuple(f"97{frame[2:]}" if frame == last else frame for frame in before.frame_names)
        assert np.array_equal(after.read(len(after) - 1), before.read(len(before) - 1))
        truth, same = data.ground_truth(video_id), other.ground_truth(video_id)
        assert truth is not None and same is not None
        assert np.array_equal(truth.masks.rle, same.masks.rle) and np.array_equal(truth.annotated, same.annotated)
    assert renamed


@pytest.mark.parametrize("name", ["jhmdb-sentences"], indirect=True)
def test_frames_that_are_counted_must_be_contiguous(name: str, sample: Sample, data: Dataset, tmp_path: Path) -> None:
    root = Path(shutil.copytree(sample.root, tmp_path / "copy"))
    lost = sorted((root / "Rename_Images").rglob("00002.png"))[0]
    lost.unlink()
    (fault,) = open_dataset(name, root, sample.shown).check()
    assert fault.startswith(f"{lost}: the frame is missing; copy it")


def test_every_dataset_declares_its_protocol_and_submission(name: str) -> None:
    cls = dataset_class(name)
    assert cls.name == name and cls.protocol in get_args(Protocol)
    assert (cls.submission_layout is None) <= (cls.submission_split is None)
    fields = {"davis": {"annotator", "video", "frame"}}.get(cls.protocol, {"video", "expression", "frame"})
    if cls.submission_layout is not None:
        assert {field for _, field, _, _ in Formatter().parse(cls.submission_layout) if field} == fields
