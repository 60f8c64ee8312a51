"""Ref-YouTube-VOS: what it reads, and which videos belong to which split."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from youtube_files import (
    HELD_OUT,
    NAMES,
    SIZE,
    annotation,
    meta,
    numbers,
    write_list,
    write_png,
    write_youtube,
)

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.ref_youtube_vos import RefYoutubeVos, is_held_out
from rvos_cache.errors import InputError
from rvos_cache.media.mask_png import write_mask_png
from rvos_select.submission import submit


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


@pytest.mark.parametrize("split", ["..", "train/..", "/", ""])
def test_a_split_that_leaves_the_root(root: Path, split: str) -> None:
    with pytest.raises(InputError, match="cannot name a folder"):
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
