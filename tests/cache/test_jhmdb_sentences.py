"""JHMDB-Sentences and its reader of .mat files: what they read, and one error line for every fault."""

from __future__ import annotations

import csv
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.jhmdb_sentences import JhmdbSentences
from rvos_cache.datasets.matlab import read_array
from rvos_cache.errors import InputError
from rvos_select.metrics.image_level import Detections, ImageScores

SIZE, FRAMES = (24, 36), 5
LIST = "jhmdb_sentences_samples_metadata.json"
SCORED = {"run_(1)": [1, 2, 5], "jump": [2, 3, 4]}


def square(frame: int) -> np.ndarray:
    out = np.zeros(SIZE, bool)
    out[4:14, 3 * frame : 3 * frame + 12] = True
    return out


def write_mat(path: Path, masks: np.ndarray, **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"other": [1.5], "part_mask": masks}, **{"do_compression": True, **settings})


def write_jhmdb(root: Path) -> None:
    """Two videos of five frames that have a mask, and a sixth image that has none."""
    rows: list[Any] = []
    for video, frames in SCORED.items():
        folder = root / "Rename_Images/act" / video
        folder.mkdir(parents=True)
        for n in range(1, FRAMES + 2):
            pixels = np.full((*SIZE, 3), 50, np.uint8)
            pixels[square(n)] = (30 * n, 200, 10)
            Image.fromarray(pixels).save(folder / f"{n:05d}.png")
        masks = f"puppet_mask/act/{video}/puppet_mask.mat"
        write_mat(root / masks, np.stack([square(n) for n in range(1, FRAMES + 1)], -1).astype(np.uint8))
        rows += [
            [
                video,
                f"./jhmdb_sentences/Rename_Images/act/{video}/{n:05d}.png",
                f"./jhmdb_sentences/{masks}",
                FRAMES,
                f"a {video}",
            ]
            for n in frames
        ]
    (root / LIST).write_text(json.dumps(rows))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_jhmdb(tmp_path)
    return tmp_path


def test_reads_the_annotations(root: Path) -> None:
    data = open_dataset("jhmdb-sentences", root, "test")
    assert isinstance(data, JhmdbSentences)
    assert list(data.check()) == []
    assert data.video_ids() == ("run_(1)", "jump")
    (expression,) = data.expressions("jump")
    assert (expression.expression_id, expression.text, expression.targets) == ("0", "a jump", ("jump",))
    video, truth = data.video("jump"), data.ground_truth("jump")
    assert video.frame_names == ("00001", "00002", "00003", "00004", "00005")
    assert truth.annotated.tolist() == [False, True, True, True, False]
    assert truth.masks.area().tolist() == [[0, 120, 120, 120, 0]]
    for t in (1, 2, 3):
        mask = truth.masks.decode(0, t)
        assert np.array_equal(mask, square(t + 1))
        assert (video.read(t)[mask] == (30 * (t + 1), 200, 10)).all()
    assert [(s.t, s.image_id) for s in data.samples("run_(1)")] == [
        (0, "v_run_(1)_f_1"),
        (1, "v_run_(1)_f_2"),
        (4, "v_run_(1)_f_5"),
    ]


def test_the_ground_truth_scores_one(root: Path) -> None:
    data, scores = JhmdbSentences(root, "test"), ImageScores()
    for video in data.video_ids():
        masks = data.ground_truth(video).masks
        for sample in data.samples(video):
            scores.add(sample.image_id, Detections.count(masks, np.array([0.9]), masks, sample.t))
    table = scores.table()
    assert len(table["samples"]) == 6
    assert table["map"] == pytest.approx(1)
    assert {table["overall_iou"], table["mean_iou"], *table["precision"].values()} == {1}


def rows(root: Path, change: Callable[[Any], object]) -> None:
    content = json.loads((root / LIST).read_text())
    change(content)
    (root / LIST).write_text(json.dumps(content))


def mat(root: Path, masks: np.ndarray, **settings: Any) -> None:
    write_mat(root / MAT, masks, **settings)


MAT, IMAGE = "puppet_mask/act/jump/puppet_mask.mat", "Rename_Images/act/jump/00003.png"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no part_mask": (
        lambda r: scipy.io.savemat(r / MAT, {"mask": np.zeros((*SIZE, 5))}),
        f"{MAT}: no array 'part_mask', it has 'mask'",
    ),
    "objects": (lambda r: mat(r, np.array([1, "a"], object)), f"{MAT}: no array 'part_mask', it has 'other', 'class 1'"),
    "complex": (lambda r: mat(r, np.zeros((*SIZE, 5), complex)), "complex"),
    "cut short": (lambda r: (r / MAT).write_bytes((r / MAT).read_bytes()[:-40]), f"{MAT}: not a whole MATLAB file"),
    "empty file": (lambda r: (r / MAT).write_bytes(b""), f"{MAT}: no MATLAB file"),
    "masks missing": (lambda r: (r / MAT).unlink(), f"{MAT}: not found"),
    "masks of another size": (lambda r: mat(r, np.zeros((36, 24, 5), np.uint8)), f"{MAT}: part_mask is (36, 24, 5)"),
    "fewer masks": (lambda r: mat(r, np.zeros((*SIZE, 4), np.uint8)), f"{MAT}: 4 masks"),
    "four dimensions": (lambda r: mat(r, np.zeros((*SIZE, 5, 2), np.uint8)), f"{MAT}: part_mask is (24, 36, 5, 2)"),
    "first frame missing": (lambda r: (r / "Rename_Images/act/jump/00001.png").unlink(), "jump/00001.png"),
    "folder missing": (lambda r: shutil.rmtree(r / "Rename_Images/act/jump"), "Rename_Images/act/jump"),
    "id that leaves the folder": (
        lambda r: rows(r, lambda c: c.append(["../x", *(p.replace("jump", "../x") for p in c[3][1:3]), 5, "x"])),
        "'../x'",
    ),
    "action that leaves the folder": (
        lambda r: rows(r, lambda c: [w.__setitem__(i, w[i].replace("act", "..")) for w in c[3:] for i in (1, 2)]),
        "row 4, action: the id '..'",
    ),
    "folder of another video": (lambda r: rows(r, lambda c: c[3].__setitem__(2, c[0][2])), "row 4: expected"),
    "no path": (lambda r: rows(r, lambda c: c[3].__setitem__(1, "00003.png")), "row 4: expected"),
    "null": (lambda r: rows(r, lambda c: c[3].__setitem__(1, None)), "row 4: expected two paths"),
    "no frames": (lambda r: rows(r, lambda c: [w.__setitem__(3, 0) for w in c[3:]]), "row 4: expected two paths"),
    "too many": (lambda r: rows(r, lambda c: [w.__setitem__(3, 10**9) for w in c[3:]]), "row 4: expected two paths"),
    "past the end": (lambda r: rows(r, lambda c: [w.__setitem__(3, 3) for w in c[3:]]), "row 6: frame 4 of 3"),
    "listed twice": (lambda r: rows(r, lambda c: c.append(c[3])), "row 7: frame 2 of 5 is listed twice"),
    "two texts": (lambda r: rows(r, lambda c: c[4].__setitem__(4, "b")), "row 5: action, frames or text differ"),
    "empty sentence": (lambda r: rows(r, lambda c: [w.__setitem__(4, "") for w in c[3:]]), "text is empty"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_the_fault_is_named(root: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(root)
    data = JhmdbSentences(root, "test")
    faults = list(data.check())
    assert any(named in line for line in faults), faults
    assert all("\n" not in line and str(root) in line for line in faults)
    assert data.ground_truth("run_(1)").masks.shape == (1, FRAMES)
    if not fault.startswith("id "):
        with pytest.raises(InputError) as error:
            _ = data.expressions("jump"), data.ground_truth("jump")
        assert named in str(error.value)


def test_check_names_all_faults_of_a_video(root: Path) -> None:
    """Faults of frames do not hide each other or those of the masks; unused images may be missing."""
    folder = root / "Rename_Images/act/jump"
    (folder / "00006.png").unlink()
    (folder / "00001.png").unlink()
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:60])
    Image.new("RGB", (5, 5)).save(folder / "00005.png")
    (root / MAT).unlink()
    faults = list(JhmdbSentences(root, "test").check())
    assert len(faults) == 4
    assert all(part in line for part, line in zip(["00001.png", "00003.png", "00005.png", MAT], faults)), faults


@pytest.mark.parametrize("content", ["[1]", "{}", "[[", "[[]]", "[[3, 1, 1, 1, 1]]"])
def test_a_malformed_list_names_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / LIST).write_text(content)
    with pytest.raises(InputError) as error:
        JhmdbSentences(tmp_path, "test")
    assert str(tmp_path / LIST) in str(error.value) and "\n" not in str(error.value)


def test_without_the_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="copy the list from MTTR's repository"):
        JhmdbSentences(tmp_path, "test")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "f4", "f8", "u8", "i8", "bool"])
def test_arrays_equal_those_of_scipy(tmp_path: Path, dtype: str, compressed: bool) -> None:
    path, rng = tmp_path / "a.mat", np.random.default_rng(0)
    for shape in ((3, 4, 5), (1, 1), (2, 0), (1, 3), (40, 50, 7)):
        write_mat(path, rng.integers(0, 2, shape).astype(dtype), do_compression=compressed)
        expected = scipy.io.loadmat(path)["part_mask"]
        array = read_array(path, "part_mask", 14_000)
        assert array.shape == expected.shape and np.array_equal(array, expected)
    with pytest.raises(InputError, match="at most 13999 numbers"):
        read_array(path, "part_mask", 13_999)


def test_big_endian(tmp_path: Path) -> None:
    """Written by hand, as SciPy writes little-endian files only: flags, dimensions, name and six numbers."""
    body = struct.pack(">IIII", 6, 8, 9, 0) + struct.pack(">IIii", 5, 8, 2, 3)
    body += struct.pack(">II", 1, 9) + b"part_mask" + bytes(7) + struct.pack(">II6hxxxx", 3, 12, 1, 2, 3, 4, 5, 6)
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + struct.pack(">II", 14, len(body)) + body)
    expected = scipy.io.loadmat(path)["part_mask"]
    assert expected.tolist() == read_array(path, "part_mask", 6).tolist() == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_files_raise_one_line(tmp_path: Path, compressed: bool) -> None:
    """Cut at any byte or with changed bytes: an array or an InputError of one line. SciPy's reader crashes on some of these."""
    path, rng = tmp_path / "a.mat", random.Random(0)
    write_mat(path, np.stack([square(n) for n in range(5)], -1).astype(np.uint8), do_compression=compressed)
    data = path.read_bytes()
    cuts = [data[:n] for n in range(0, len(data), max(1, len(data) // 100))]
    cases = []
    for _ in range(1000):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(min(len(data), 420))] = rng.randrange(256)
        cases.append(bytes(changed))
    errors = []
    for case in cuts + cases:
        path.write_bytes(case)
        try:
            assert read_array(path, "part_mask", 24 * 36 * 5).size <= 24 * 36 * 5
        except InputError as error:
            errors.append(str(error))
    assert len(errors) > len(cuts)
    assert all(str(path) in line and "\n" not in line for line in errors)


def test_published_list(real_data: Path, tmp_path: Path) -> None:
    """All 2,784 samples of MTTR's list and the published sentences; there are no frames."""
    shutil.copy(real_data / "jhmdb_sentences" / LIST, tmp_path)
    data = JhmdbSentences(tmp_path, "test")
    with (real_data / "jhmdb_sentences/jhmdb_annotation.txt").open(newline="") as file:
        raw = list(csv.reader(file))[1:]
    assert {v: data.expressions(v)[0].text for v in data.video_ids()} == dict(raw) and len(raw) == 928
    content = json.loads((tmp_path / LIST).read_text())
    samples = [s for v in data.video_ids() for s in data.samples(v)]
    names = [f"{tmp_path}/{'/'.join(row[1].split('/')[2:])}" for row in content]
    folders = [str(data._folder("Rename_Images", s.video_id)) for s in samples]
    assert [f"{folder}/{s.t + 1:05d}.png" for folder, s in zip(folders, samples)] == names
    assert len({s.image_id for s in samples}) == len(samples) == 2784
    faults = list(data.check())
    assert len(faults) == sum(row[3] for row in content) // 3 + 928
