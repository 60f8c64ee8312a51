"""Caches are bound to the content of their dataset, not to its path, its times or its counts."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from odd_videos import EXPRESSIONS, call, write_split

from rvos_cache.errors import InputError
from rvos_cache.exchange.relabel import relabel
from rvos_cache.extraction import extract
from rvos_cache.identity import answers_digest, expressions_difference, frames_digest, truth_difference
from rvos_cache.masks import RleMasks
from rvos_cache.media.frames import folder_video
from rvos_cache.store import CacheWriter, TrackCache, content_digest
from rvos_cache.types import Expression, GroundTruth, Video

NAMES, SIZE = ("0", "1"), (4, 6)


def truth(pixels: np.ndarray, ids: tuple[str, ...] = ("a", "b")) -> GroundTruth:
    return GroundTruth(ids, RleMasks.from_dense(pixels), np.ones(len(NAMES), bool))


@pytest.fixture
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.random((2, 2, *SIZE)) < 0.4


def test_frames_are_identified_by_the_bytes_of_their_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for t in range(3):
            cv2.imwrite(str(tmp_path / folder / f"{t}.png"), np.full((4, 6, 3), 10 * t, np.uint8))
    first, second = (frames_digest(folder_video(tmp_path / folder, "v")) for folder in ("a", "b"))
    assert first == second
    os.utime(tmp_path / "b/0.png", (0, 0))
    assert frames_digest(folder_video(tmp_path / "b", "v")) == first
    times = (tmp_path / "b/1.png").stat()
    cv2.imwrite(str(tmp_path / "b/1.png"), np.full((4, 6, 3), 11, np.uint8))
    os.utime(tmp_path / "b/1.png", (times.st_atime, times.st_mtime))
    assert frames_digest(folder_video(tmp_path / "b", "v")) != first
    (tmp_path / "b/2.png").unlink()
    with pytest.raises(InputError, match=r"b/2.png: cannot be read"):
        frames_digest(replace(folder_video(tmp_path / "a", "v"), files=(tmp_path / "b/2.png",)))


def test_bytes_moved_from_one_file_to_the_next_are_a_difference(tmp_path: Path) -> None:
    video = Video("v", NAMES, SIZE, lambda t: np.zeros((*SIZE, 3), np.uint8), files=(tmp_path / "0", tmp_path / "1"))
    digests = []
    for first, second in ((b"ab", b"c"), (b"a", b"bc")):
        (tmp_path / "0").write_bytes(first)
        (tmp_path / "1").write_bytes(second)
        digests.append(frames_digest(video))
    assert digests[0] != digests[1]


def test_frames_without_files_are_identified_by_their_pixels() -> None:
    def video(value: int) -> Video:
        return Video("v", NAMES, SIZE, lambda t: np.full((*SIZE, 3), value if t else 0, np.uint8))

    assert frames_digest(video(1)) == frames_digest(video(1)) != frames_digest(video(2))


def test_equal_pixels_are_equal_in_every_run_length_code(pixels: np.ndarray) -> None:
    """COCO's counts may hold runs of no length: 3, 0, 0, 2 is 3, 2."""
    pixels[0, 0] = 0
    pixels[0, 0].T.flat[3:5] = 1
    plain = truth(pixels)
    h, w = SIZE
    from pycocotools import mask as coco

    odd = bytes(coco.frPyObjects({"size": [h, w], "counts": [3, 0, 0, 2, h * w - 5]}, h, w)["counts"])
    rows = [[plain.masks.bytes_at(k, t) for t in range(2)] for k in range(2)]
    assert odd != rows[0][0]
    rows[0][0] = odd
    other = replace(plain, masks=RleMasks.from_bytes(rows, 2, SIZE))
    assert np.array_equal(other.masks.dense(), pixels)
    assert truth_difference(plain, other) is None
    assert answers_digest(NAMES, (), plain) == answers_digest(NAMES, (), other)


def test_the_first_difference_of_answers_is_named(pixels: np.ndarray) -> None:
    before = truth(pixels)
    changed = pixels.copy()
    changed[1, 1, 2, 3] ^= True
    assert truth_difference(before, truth(changed)) == "object b has other masks"
    assert truth_difference(before, truth(changed[:1], ("a",))) is None
    assert "frames were annotated" in str(truth_difference(before, replace(before, annotated=np.array([True, False]))))
    assert truth_difference(before, truth(pixels[::-1], ("b", "a"))) is None
    dog = Expression("v", "0", "the dog", ("a",))
    for other, difference in (
        (replace(dog, text="the cat"), "expression 0 was 'the dog' and is 'the cat'"),
        (replace(dog, targets=()), "expression 0, 'the dog', named a and names no object"),
        (replace(dog, targets=None), None),
        (replace(dog, expression_id="1"), None),
    ):
        assert expressions_difference([dog], [other]) == difference


def test_answers_have_one_digest_in_any_order_of_objects_and_sentences(pixels: np.ndarray) -> None:
    sentences = (Expression("v", "0", "the dog", ("a",)), Expression("v", "1", "both", ("a", "b")))
    digest = answers_digest(NAMES, sentences, truth(pixels))
    assert answers_digest(NAMES, sentences[::-1], truth(pixels[::-1], ("b", "a"))) == digest
    others = [
        answers_digest(("0", "2"), sentences, truth(pixels)),
        answers_digest(NAMES, sentences[:1], truth(pixels)),
        answers_digest(NAMES, (replace(sentences[0], targets=("b",)), sentences[1]), truth(pixels)),
        answers_digest(NAMES, sentences, truth(~pixels)),
    ]
    assert digest not in others and len(set(others)) == 4


@pytest.fixture
def split(tmp_path: Path) -> tuple[Path, Path]:
    """Two videos in MeViS's layout, and the path of a cache of them."""
    write_split(tmp_path / "data/train", dict.fromkeys(("t0", "t1"), (3, True, EXPRESSIONS)))
    return tmp_path / "data", tmp_path / "c.zarr"


def again(root: Path, out: Path) -> None:
    extract("mevis", root, "train", "flow", out)


def test_extraction_refuses_to_go_on_with_what_has_changed(split: tuple[Path, Path]) -> None:
    root, out = split
    again(root, out)
    before = content_digest(out)
    again(root, out)
    video = TrackCache(out).video_ids()[0]
    meta, masks = root / "train/meta_expressions.json", root / "train/mask_dict.json"
    frame = sorted((root / "train/JPEGImages" / video).iterdir())[1]
    texts = json.loads(meta.read_text())
    key = next(iter(texts["videos"][video]["expressions"]))
    anno = next(iter(texts["videos"][video]["expressions"].values()))["anno_id"]
    for path, change, difference in (
        (frame, lambda raw: raw + b"\0", "its frames are other pictures"),
        (meta, lambda raw: _edit(raw, video, key, exp="something else"), "and is 'something else'"),
        (masks, lambda raw: _empty(raw, str(anno[0])), f"object {anno[0]} has other masks"),
    ):
        raw, times = path.read_bytes(), path.stat()
        path.write_bytes(change(raw))
        os.utime(path, (times.st_atime, times.st_mtime))
        with pytest.raises(InputError, match="1 of its videos changed in") as caught:
            again(root, out)
        assert difference in str(caught.value) and f"delete the folder {out}/videos/{video}" in str(caught.value)
        path.write_bytes(raw)
    again(root, out)
    assert content_digest(out) == before


def test_verify_notes_what_has_changed_since(
    split: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache itself has no fault."""
    root, out = split
    again(root, out)
    capsys.readouterr()
    frame = next((root / "train/JPEGImages/t1").iterdir())
    frame.write_bytes(frame.read_bytes() + b"\0")
    call(monkeypatch, None, "verify", out)
    note, last = capsys.readouterr().out.splitlines()
    assert note.startswith(f"note: {out}, video t1: changed in {root}") and note.endswith("its frames are other pictures")
    assert last == "no fault"
    shutil.rmtree(root)
    call(monkeypatch, None, "verify", out)
    assert capsys.readouterr().out == "no fault\n"


def _edit(raw: bytes, video: str, key: str, **values: object) -> bytes:
    content = json.loads(raw)
    content["videos"][video]["expressions"][key] |= values
    return json.dumps(content).encode()


def _empty(raw: bytes, object_id: str) -> bytes:
    content = json.loads(raw)
    content[object_id] = [None] * len(content[object_id])
    return json.dumps(content).encode()


def test_tracks_are_labelled_again_without_tracking(split: tuple[Path, Path], tmp_path: Path) -> None:
    """As a new extraction would label them."""
    root, out = split
    again(root, out)
    masks = root / "train/mask_dict.json"
    masks.write_bytes(_empty(masks.read_bytes(), "1"))
    meta = root / "train/meta_expressions.json"
    meta.write_bytes(_edit(meta.read_bytes(), "t1", "0", exp="something else", anno_id=[2]))
    with pytest.raises(InputError, match="rvos-cache relabel"):
        again(root, out)
    relabel(out, tmp_path / "new.zarr")
    again(root, tmp_path / "expected.zarr")
    assert content_digest(tmp_path / "new.zarr") == content_digest(tmp_path / "expected.zarr") != content_digest(out)
    again(root, tmp_path / "new.zarr")
    frame = next((root / "train/JPEGImages/t0").iterdir())
    frame.write_bytes(frame.read_bytes() + b"\0")
    report = relabel(out, tmp_path / "third.zarr")
    assert report.done == ["t1"] and "its frames are other pictures; extract it again" in report.failed["t0"]


def test_labels_of_two_corrections_do_not_mix(split: tuple[Path, Path], tmp_path: Path) -> None:
    root, out = split
    again(root, out)
    meta = root / "train/meta_expressions.json"
    meta.write_bytes(_edit(meta.read_bytes(), "t1", "0", exp="first correction"))
    relabel(out, tmp_path / "new.zarr")
    meta.write_bytes(_edit(meta.read_bytes(), "t1", "0", exp="second correction"))
    with pytest.raises(InputError, match="was 'first correction' and is 'second correction'"):
        relabel(out, tmp_path / "new.zarr")
    with pytest.raises(InputError, match="is the cache to label again; give another --out"):
        relabel(out, out)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"expressions_digest": "0"}, "depend on the sentences"),
        ({"training_only": True}, "were prompted with the ground truth"),
        ({"measurement_specs": [{"name": "m"}]}, "were measured against the ground truth"),
    ],
)
def test_tracks_that_depend_on_labels_are_not_labelled_again(
    split: tuple[Path, Path], tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    root, out = split
    again(root, out)
    path = CacheWriter(tmp_path / "other.zarr", TrackCache(out).card.model_copy(update=change)).path
    with pytest.raises(InputError, match=f"its tracks {reason}, so they cannot be labelled again"):
        relabel(path, tmp_path / "new.zarr")


def test_frames_that_were_removed_do_not_stop_a_later_extraction(split: tuple[Path, Path]) -> None:
    root, out = split
    again(root, out)
    video = TrackCache(out).video_ids()[0]
    before = content_digest(out)
    shutil.rmtree(root / "train/JPEGImages" / video)
    with pytest.warns(UserWarning, match="1 of its videos cannot be compared"):
        again(root, out)
    assert content_digest(out) == before


def test_the_root_of_a_card_is_absolute(split: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = split
    monkeypatch.chdir(root.parent)
    again(Path("data"), out)
    assert TrackCache(out).card.root == str(root)
