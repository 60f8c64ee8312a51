"""A2D-Sentences: what it reads, and one error line that names the file for every fault."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rvos_cache.datasets import open_dataset
from rvos_cache.datasets.a2d_sentences import A2dSentences, read_instances, read_masks
from rvos_cache.errors import InputError
from rvos_cache.masks import RleMasks
from rvos_cache.media.frames import VideoWriter
from rvos_select.metrics.image_level import Detections, ImageScores

SIZE, FRAMES = (32, 48), 6
LIST = "a2d_sentences_single_frame_{}_annotations.json"
TEXT = "text_annotations/a2d_annotation.txt"
MASKS = "text_annotations/a2d_annotation_with_instances"


def square(frame: int, instance: int) -> np.ndarray:
    """8 rows, 12 columns, moving right: a mask that is transposed or off by a frame differs."""
    out = np.zeros(SIZE, bool)
    out[4 + 10 * instance :, 3 * frame :][:8, :12] = True
    return out


def write_h5(path: Path, ids: list[int], masks: list[np.ndarray]) -> None:
    """Write a file as MATLAB does: columns first; one instance loses its dimension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    transposed = np.stack([m.T for m in masks]).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file["instance"] = np.array(ids, np.int32)
        file.create_dataset("reMask", data=transposed[0] if len(ids) == 1 else transposed, compression="gzip")
        file["reBBox"] = np.zeros((4, len(ids)) if len(ids) > 1 else 4)


def write_a2d(root: Path) -> None:
    """Three videos of six frames, two of them in train: "-a" has objects 0 and 2 (2 is not in frame 5), the others object 0."""
    for video in ("-a", "b", "c"):
        path = root / "Release/clips320H" / f"{video}.mp4"
        with VideoWriter(path, 10, SIZE) as film:
            for t in range(FRAMES):
                frame = np.full((*SIZE, 3), 60, np.uint8)
                frame[square(t, 0)] = (40 * t, 220, 90)
                film.write(frame)
        folder = root / MASKS / video
        write_h5(folder / "00002.h5", [2, 0], [square(1, 1), square(1, 0)])
        write_h5(folder / "00005.h5", [0], [square(4, 0)])
    rows = [["-a", "0", "The square is moving"], ["-a", "2", "A box, lower"], ["b", "0", " a square "], ["b", "1 (copy)", "x"]]
    with (root / TEXT).open("w", newline="") as file:
        csv.writer(file).writerows([["video_id", "instance_id", "query"], *rows, ["c", "0", "a square"], ["d", "0", "nothing"]])
    subsets = {"-a": 0, "b": 0, "c": 1, "d": 0}
    lines = [f"{v},11,00:00:01,00:00:02,32,48,{FRAMES},2,{n}" for v, n in subsets.items()]
    (root / "Release/videoset.csv").write_text("\n".join(lines) + "\n")
    (root / "text_annotations/a2d_missed_videos.txt").write_text("d\n")


def write_list(root: Path) -> None:
    """Write MTTR's lists of the same sentences."""
    train: list[Any] = [["the square is moving", "-a", 2, 0], ["the square is moving", "-a", 5, 0], ["a box, lower", "-a", 2, 2]]
    train += [[" a square ", "b", 2, 0], [" a square ", "b", 5, 0]]
    (root / LIST.format("train")).write_text(json.dumps(train))
    (root / LIST.format("test")).write_text(json.dumps([["a square", "c", 2, 0], ["a square", "c", 5, 0]]))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("a2d")
    write_a2d(root)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """The original files only."""
    return Path(shutil.copytree(original, tmp_path / "a2d"))


@pytest.fixture
def listed(root: Path) -> Path:
    """With MTTR's list."""
    write_list(root)
    return root


def content(root: Path, split: str = "train") -> dict[str, Any]:
    data = open_dataset("a2d-sentences", root, split)
    assert isinstance(data, A2dSentences)
    assert list(data.check()) == []
    videos: dict[str, Any] = {}
    for video in data.video_ids():
        truth = data.ground_truth(video)
        videos[video] = (
            [(e.expression_id, e.targets) for e in data.expressions(video)],
            (truth.object_ids, truth.masks.area().tolist(), truth.annotated.tolist()),
            [(s.expression_id, s.t, s.image_id) for s in data.samples(video)],
        )
    return videos


def test_original_files_and_list_agree(root: Path) -> None:
    from_original = content(root), content(root, "test")
    texts = [e.text for e in A2dSentences(root, "train").expressions("-a")]
    assert texts == ["The square is moving", "A box, lower"]
    write_list(root)
    assert (content(root), content(root, "test")) == from_original
    train, test = from_original
    assert (list(train), list(test)) == (["-a", "b"], ["c"])
    expressions, truth, samples = train["-a"]
    assert expressions == [("0", ("-a/0",)), ("2", ("-a/2",))]
    assert truth[0] == ("-a/0", "-a/2")
    assert truth[1] == [[0, 96, 0, 0, 96, 0], [0, 96, 0, 0, 0, 0]]
    assert truth[2] == [False, True, False, False, True, False]
    assert samples == [("0", 1, "v_-a_f_2_i_0"), ("0", 4, "v_-a_f_5_i_0"), ("2", 1, "v_-a_f_2_i_2")]


def test_masks_are_transposed_and_belong_to_their_frame(root: Path) -> None:
    data = A2dSentences(root, "train")
    truth, video = data.ground_truth("-a"), data.video("-a")
    assert (video.frame_names[0], len(video), video.size) == ("00001", FRAMES, SIZE)
    for t in (1, 4):
        mask = truth.masks.decode(0, t)
        assert np.array_equal(mask, square(t, 0))
        # The object is green: the mask covers it and nothing else.
        green = video.read(t)[..., 1]
        assert green[mask].mean() > 180 and green[~mask].mean() < 90


def test_the_ground_truth_scores_one(listed: Path) -> None:
    """Score every sample of the split with its own ground truth as the prediction."""
    data, scores = A2dSentences(listed, "train"), ImageScores()
    for video in data.video_ids():
        truth = data.ground_truth(video)
        for sample in data.samples(video):
            mask = truth.masks.select(truth.indices([f"{video}/{sample.expression_id}"]))
            scores.add(sample.image_id, Detections.count(mask, np.array([0.9]), mask, sample.t))
    table = scores.table()
    assert len(table["samples"]) == 5
    assert table["map"] == pytest.approx(1)
    assert {table["overall_iou"], table["mean_iou"], *table["precision"].values()} == {1}


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def with_h5(root: Path, change: Callable[[h5py.File], object], name: str = "00005.h5") -> None:
    with h5py.File(root / MASKS / "-a" / name, "r+") as file:
        change(file)


def replaced(root: Path, name: str, value: object) -> None:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    with_h5(root, change)


def rows(root: Path, change: Callable[[Any], object]) -> None:
    path = root / LIST.format("train")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def plugged(file: h5py.File) -> None:
    """Write an array with a filter that HDF5 would load a plug-in for; it has no chunks, so writing it needs no plug-in."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((48, 32))
    creation.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    del file["reMask"]
    h5py.h5d.create(file.id, b"reMask", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((48, 32)), creation)


H5 = f"{MASKS}/-a/00005.h5"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda r: cut(r / H5, 1500), "-a/00005.h5: not a whole HDF5 file"),
    "empty file": (lambda r: cut(r / H5, 0), "-a/00005.h5: not a whole HDF5 file"),
    "no HDF5": (lambda r: (r / H5).write_text("hello"), "-a/00005.h5: not a whole HDF5 file"),
    "no reMask": (lambda r: with_h5(r, lambda f: f.pop("reMask")), "-a/00005.h5: no dataset 'reMask'"),
    "no instance": (lambda r: with_h5(r, lambda f: f.pop("instance")), "-a/00005.h5: no dataset 'instance'"),
    "a group": (lambda r: with_h5(r, lambda f: (f.pop("reMask"), f.create_group("reMask"))), "array of numbers"),
    "text for ids": (lambda r: replaced(r, "instance", ["a"]), "array of numbers"),
    "half an id": (lambda r: replaced(r, "instance", [0.5]), "expected whole numbers"),
    "no number": (lambda r: replaced(r, "instance", [np.nan]), "expected whole numbers"),
    "ids without values": (lambda r: replaced(r, "instance", h5py.Empty("i4")), "instance has None ids"),
    "no such file behind a link": (
        lambda r: replaced(r, "reMask", h5py.ExternalLink("../b/00005.h5", "reMask")),
        "inside the file",
    ),
    "a plug-in": (lambda r: with_h5(r, plugged), "compressed by a plug-in"),
    "mask of another size": (
        lambda r: replaced(r, "reMask", np.zeros((32, 48), np.uint8)),
        "(32, 48), expected (1, 48, 32)",
    ),
    "fewer masks than ids": (lambda r: replaced(r, "instance", [0, 1]), "expected (2, 48, 32)"),
    "instance listed, not there": (lambda r: replaced(r, "instance", [7]), "instance 0 is not in [7]"),
    "instance twice": (
        lambda r: write_h5(r / H5, [0, 0], [square(4, 0), square(4, 1)]),
        "-a/00005.h5: an instance is listed twice",
    ),
    "frame past the end": (lambda r: shutil.copy(r / H5, r / MASKS / "-a/00007.h5"), "decodes to 6 frames"),
    "no frame's name": (lambda r: shutil.copy(r / H5, r / MASKS / "-a/7.h5"), "-a/7.h5: the name must be"),
    "annotated frame missing": (lambda r: (r / H5).unlink(), "-a/00005.h5: not found"),
    "annotations missing": (lambda r: shutil.rmtree(r / MASKS / "-a"), f"{MASKS}/-a: no annotated frames"),
    "video missing": (lambda r: (r / "Release/clips320H/-a.mp4").unlink(), "clips320H/-a.mp4: the video is missing"),
    "video cut short": (lambda r: cut(r / "Release/clips320H/-a.mp4", 300), "clips320H/-a.mp4: cannot be decoded"),
    "id that leaves the folder": (lambda r: rows(r, lambda c: c.append(["x", "../b", 2, 0])), "'../b'"),
    "empty sentence": (lambda r: rows(r, lambda c: [row.__setitem__(0, " ") for row in c[:2]]), "text is empty"),
    "two texts": (
        lambda r: rows(r, lambda c: c[1].__setitem__(0, "other")),
        "row 2: instance 0 has another text",
    ),
    "frame twice": (lambda r: rows(r, lambda c: c.append(c[0])), "row 6: frame 2 of instance 0 is listed twice"),
    "frame zero": (lambda r: rows(r, lambda c: c[0].__setitem__(2, 0)), "row 1: expected"),
    "null": (lambda r: rows(r, lambda c: c[0].__setitem__(3, None)), "row 1: expected"),
    "true": (lambda r: rows(r, lambda c: c[0].__setitem__(3, True)), "row 1: expected"),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_check_names_the_fault(listed: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(listed)
    data = A2dSentences(listed, "train")
    faults = list(data.check())
    assert any(named in line for line in faults), faults
    assert all("\n" not in line and str(listed) in line for line in faults)
    # The other video can still be read.
    assert len(data.expressions("b")) == data.ground_truth("b").masks.shape[0] == 1


READING = sorted(set(FAULTS) - {"instance twice", "id that leaves the folder"})


@pytest.mark.parametrize("fault", READING)
def test_reading_names_the_fault_too(listed: Path, fault: str) -> None:
    damage, named = FAULTS[fault]
    damage(listed)
    data = A2dSentences(listed, "train")
    with pytest.raises(InputError) as error:
        _ = data.expressions("-a"), data.ground_truth("-a")
    assert named in str(error.value)


def test_check_names_all_faults_of_a_video(listed: Path) -> None:
    """A missing mp4 does not hide damaged annotations and rows."""
    (listed / "Release/clips320H/-a.mp4").unlink()
    cut(listed / MASKS / "-a/00002.h5", 900)
    with_h5(listed, lambda f: f.pop("instance"))
    rows(listed, lambda c: c[0].__setitem__(3, "0"))
    faults = list(A2dSentences(listed, "train").check())
    assert len(faults) == 4
    assert all(part in line for part, line in zip(["row 1", "-a.mp4", "00002.h5", "00005.h5"], faults)), faults


def lines(root: Path, name: str, change: Callable[[list[str]], object]) -> None:
    content = (root / name).read_text().splitlines()
    change(content)
    (root / name).write_text("\n".join(content) + "\n")


ORIGINAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "two sentences": (
        lambda r: lines(r, TEXT, lambda c: c.append("-a,0,again")),
        "line 8: instance 0 has a sentence",
    ),
    "no number": (lambda r: lines(r, TEXT, lambda c: c.append("-a,x,again")), "line 8: instance 'x' is no number"),
    "a comma": (lambda r: lines(r, TEXT, lambda c: c.append("-a,4,a, b")), "line 8: 4 columns"),
    "no header": (lambda r: lines(r, TEXT, lambda c: c.pop(0)), "line 1: expected the header"),
    "open quote": (lambda r: lines(r, TEXT, lambda c: c.append('-a,4,"a')), "cannot be read"),
    "not UTF-8": (lambda r: (r / TEXT).write_bytes(b"\xff\xfe\x00"), "expected UTF-8"),
    "third subset": (
        lambda r: lines(r, "Release/videoset.csv", lambda c: c.append("e,1,1,1,1,1,1,1,2")),
        "line 5: expected nine",
    ),
    "fewer columns": (lambda r: lines(r, "Release/videoset.csv", lambda c: c.append("e,0")), "line 5: expected nine"),
    "id that leaves the folder": (
        lambda r: (
            lines(r, TEXT, lambda c: c.append("../b,0,out")),
            lines(r, "Release/videoset.csv", lambda c: c.append("../b,1,1,1,1,1,1,1,0")),
        ),
        "'../b'",
    ),
}


@pytest.mark.parametrize("fault", sorted(ORIGINAL))
def test_faults_of_the_original_files(root: Path, fault: str) -> None:
    damage, named = ORIGINAL[fault]
    damage(root)
    try:
        faults = list(A2dSentences(root, "train").check())
    except InputError as error:
        faults = [str(error)]
    assert len(faults) == 1 and named in faults[0], faults
    assert "\n" not in faults[0] and str(root) in faults[0]


@pytest.mark.parametrize("content", ["[1]", "{}", "[[", '[["a", 3, 1, 1]]', '[["a"]]', "[" * 100_000])
def test_a_malformed_list_names_its_file(root: Path, content: str) -> None:
    path = root / LIST.format("train")
    path.write_text(content)
    with pytest.raises(InputError) as error:
        A2dSentences(root, "train")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_empty_root_names_the_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="single_frame_train_annotations.json: not found, nor .*videoset.csv"):
        A2dSentences(tmp_path, "train")
    (tmp_path / LIST.format("test")).write_text("[]")
    assert A2dSentences.splits(tmp_path) == ["test"]


def test_one_instance_may_keep_its_dimension(tmp_path: Path) -> None:
    path = tmp_path / "00001.h5"
    with h5py.File(path, "w") as file:
        file["instance"], file["reMask"] = [[3]], square(1, 0).T[None].astype(np.uint8)
    assert read_instances(path) == [3]
    assert np.array_equal(read_masks(path, SIZE)[1], square(1, 0)[None])
    with h5py.File(path, "w") as file:
        file["instance"] = np.zeros(0, np.int32)
    assert read_masks(path, SIZE)[0] == []


def test_damaged_files_raise_one_line(tmp_path: Path) -> None:
    """Cut at any byte or with changed bytes: masks or an InputError of one line, nothing else."""
    path, rng = tmp_path / "00001.h5", random.Random(0)
    write_h5(path, [0, 2], [square(1, 0), square(1, 1)])
    data = path.read_bytes()
    cases = [data[:n] for n in range(0, len(data), 211)]
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        cases.append(bytes(changed))
    errors = []
    for case in cases:
        path.write_bytes(case)
        try:
            ids, masks = read_masks(path, SIZE)
            assert masks.shape == (len(ids), *SIZE)
        except InputError as error:
            errors.append(str(error))
    assert len(errors) > len(data) // 211
    assert all(str(path) in line and "\n" not in line for line in errors)


def test_published_sentences(real_data: Path, tmp_path: Path) -> None:
    """All of the published CSV; the subsets are invented, and there are no frames."""
    (tmp_path / "text_annotations").mkdir()
    (tmp_path / "Release").mkdir()
    shutil.copy(real_data / "a2d_sentences/a2d_annotation.txt", tmp_path / TEXT)
    with (tmp_path / TEXT).open(newline="") as file:
        raw = list(csv.reader(file))[1:]
    videos = list(dict.fromkeys(row[0] for row in raw))
    chosen = {v: int(i % 4 == 0) for i, v in enumerate(videos)}
    with (tmp_path / "Release/videoset.csv").open("w", newline="") as file:
        csv.writer(file).writerows([v, 1, 1, 1, 1, 1, 1, 1, n] for v, n in chosen.items())
    texts = {}
    for split, number in (("train", 0), ("test", 1)):
        data = A2dSentences(tmp_path, split)
        assert data.video_ids() == tuple(v for v in videos if chosen[v] == number)
        for video in data.video_ids():
            texts |= {(video, e.expression_id): e.text for e in data.expressions(video)}
    assert len(raw) == 6655 and len(videos) == 3754
    # All except the instance "1 (copy)".
    assert texts == {(v, i): text for v, i, text in raw if i != "1 (copy)"} and len(texts) == 6654


def test_an_mttr_list_of_the_published_sentences(real_data: Path, tmp_path: Path) -> None:
    """The published sentences, written as rows of MTTR's list, are read as the same expressions."""
    with (real_data / "a2d_sentences/a2d_annotation.txt").open(newline="") as file:
        raw = [row for row in list(csv.reader(file))[1:] if row[1].isdecimal()]
    content = [[text.lower(), video, frame, int(i)] for video, i, text in raw for frame in (1, 20, 40)]
    (tmp_path / LIST.format("test")).write_text(json.dumps(content))
    data = A2dSentences(tmp_path, "test")
    texts = {e.key: e.text for v in data.video_ids() for e in data.expressions(v)}
    assert texts == {f"{v}/{i}": text.lower() for v, i, text in raw}
    assert sum(len(data.samples(v)) for v in data.video_ids()) == 3 * 6654


def test_targets_are_indices_of_the_masks(listed: Path) -> None:
    """Evaluation looks up targets by their ids in each video."""
    data = A2dSentences(listed, "train")
    truth = data.ground_truth("-a")
    assert isinstance(truth.masks, RleMasks)
    assert [truth.indices(e.targets or ()) for e in data.expressions("-a")] == [[0], [1]]
